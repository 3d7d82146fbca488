# SPDX-License-Identifier: MIT
"""Reads dumps: tensors that an engine recorded in the layout of docs/record-tensors.md. Needs numpy alone.

    import moe_diag

    dump = moe_diag.open_dump("dump")
    dump["moe_ffn_out", 7]                # array [rows of all calls, ...]; bf16 is read as float32, exactly
    dump["lm_head", None]                 # stages of the whole model have no layer
    dump.rows("moe_ffn_out", 7, call=2)   # the rows of one call
    dump.bits("moe_ffn_out", 7)           # bf16 as uint16, everything else as it is

    dump.info["engine"], dump.stages, dump.layers
    dump.calls[2].tokens, dump.calls[2].positions, dump.calls[2].mode

A dump that was cut, because its engine died, is refused with a DumpError; `cut_ok=True` reads the calls that are complete.
"""

from __future__ import annotations

import ast
import difflib
import json
import pathlib
import re
from dataclasses import dataclass, field

import numpy

from .captures import ALIASES
from .recorder import ALL_STAGES, FORMAT, VERSION
from .tensors import from_bits, load_safetensors

__all__ = ["Dump", "DumpCall", "DumpError", "open_dump"]

KINDS = ("f4", "f8", "f2", "V2", "i1", "i2", "i4", "i8", "u1", "u2", "u4")


class DumpError(ValueError):
    """What keeps a dump from being read; the message says what to do."""


@dataclass(frozen=True)
class DumpCall:
    """One forward pass. A batch of several requests has `parts`; the other fields then join them, in order."""

    rows: int  # of its arrays, padding included
    requests: tuple = field(repr=False)  # the request of each row
    positions: tuple = field(repr=False)  # of each row, in its request
    tokens: tuple | None = field(repr=False)  # the id of each row; None: not recorded
    padding: int = 0  # the last rows, which mean nothing
    recorded: object = None  # how many of the last rows each stage has, by stage; or of all stages; None: all rows
    line: dict = field(default_factory=dict, repr=False)  # as calls.jsonl has it

    @property
    def request(self):
        return self.requests[0]

    @property
    def mode(self):
        return self.line.get("mode")

    def rows_of(self, stage):
        """How many of the call's last rows were recorded of a stage."""
        return self.rows if self.recorded is None else self.recorded.get(stage, self.rows) if isinstance(self.recorded, dict) \
            else self.recorded  # fmt: skip


def open_dump(path, *, cut_ok=False):
    """Opens the folder of a dump. Raises DumpError when it is none, or when it was cut and `cut_ok` is not said."""
    return Dump(pathlib.Path(path), cut_ok)


class Dump:
    """All arrays of one dump, by [stage, layer]."""

    def __init__(self, path, cut_ok=False):
        self.path = path
        self.info = _info(path)
        self.complete = self.info.get("closed") is True
        if not self.complete and not cut_ok:
            raise DumpError(f"{path}: was cut: dump.json does not say that it was closed, so the engine died or still runs; "
                            "open_dump(path, cut_ok=True) reads the calls that are complete")  # fmt: skip
        self.calls = _calls(path, self.complete)
        self._store = _Safetensors(self) if sorted(path.glob("call_*.safetensors")) else _Npy(self)
        if self.complete and self.info.get("calls", len(self.calls)) != len(self.calls):
            raise DumpError(f"{path}/calls.jsonl: expected {self.info['calls']} calls, as dump.json says, found {len(self.calls)}")
        self.layers = sorted({layer for _, layer in self._store.keys if layer is not None})
        order = {stage: at for at, stage in enumerate(ALL_STAGES)}
        self.stages = sorted({stage for stage, _ in self._store.keys}, key=lambda stage: (order.get(stage, 1000), stage))

    def __repr__(self):
        cut = "" if self.complete else ", cut"
        return (f"<Dump {self.path}: {len(self.calls)} calls, {len(self.layers)} layers, {len(self.stages)} stages, "
                f"{len(self)} arrays{cut}>")  # fmt: skip

    def __len__(self):
        return len(self._store.keys)

    def __iter__(self):
        return iter(self._store.keys)

    def __contains__(self, key):
        return (ALIASES.get(key[0], key[0]), key[1]) in self._store.keys

    def __getitem__(self, key):
        """The rows of all calls; bf16 as float32."""
        return _widened(self._read(*key))

    def bits(self, stage, layer=None):
        """The rows of all calls in the type that they were recorded in; bf16 as uint16."""
        values = self._read(stage, layer)
        return values.view("<u2") if values.dtype.kind == "V" else values

    def rows(self, stage, layer=None, *, call):
        """The rows of one call: its last ones, where not all were recorded. bf16 as float32."""
        stage = ALIASES.get(stage, stage)
        counts = [self._store.rows_of(number, stage) for number in range(len(self.calls))]
        call = range(len(counts))[call]
        begin = sum(counts[:call])
        return _widened(self._read(stage, layer)[begin : begin + counts[call]])

    def _read(self, stage, layer):
        key = ALIASES.get(stage, stage), layer
        if key not in self._store.keys:
            layers = [str(at) for name, at in self._store.keys if name == key[0]]
            near = difflib.get_close_matches(str(stage), self.stages, 1)
            hint = f", its layers are {', '.join(layers)}" if layers else f", did you mean '{near[0]}'?" if near else ""
            raise KeyError(f"no {stage} of layer {layer} in {self.path}{hint}")
        return self._store.read(*key)


class _Npy:
    """One file for each array, with the rows of all calls."""

    def __init__(self, dump):
        self._dump = dump
        self._files, self._arrays = {}, {}
        for path in sorted(dump.path.rglob("*.npy" if dump.complete else "*.npy*")):
            stage, layer = _key(path.parent.name if path.parent != dump.path else "", path.name.split(".npy")[0])
            self._files[stage, layer] = path
        self.keys = list(self._files)
        unfinished = sorted(dump.path.rglob("*.npy.part")) if dump.complete else []
        if unfinished:
            raise DumpError(f"{unfinished[0]}: is not complete, though dump.json says that the dump was closed")
        for key in self.keys:
            self._arrays[key] = self._open(*key)
        if dump.complete:
            for stage, layer in self.keys:
                self._check(stage, layer)
        else:
            self._keep_complete_calls()

    def rows_of(self, number, stage):
        return self._dump.calls[number].rows_of(stage)

    def read(self, stage, layer):
        return self._arrays[stage, layer][: sum(call.rows_of(stage) for call in self._dump.calls)]

    def _open(self, stage, layer):
        path = self._files[stage, layer]
        dtype, shape, begin = _npy_header(path, self._dump.info)
        if path.suffix == ".part":  # its size tells the rows
            row = dtype.itemsize * int(numpy.prod(shape[1:], dtype=object))
            shape = ((path.stat().st_size - begin) // row, *shape[1:])
        elif path.stat().st_size - begin != dtype.itemsize * int(numpy.prod(shape, dtype=object)):
            raise DumpError(f"{path}: expected {list(shape)} values of {dtype.itemsize} bytes behind a header of {begin}, found "
                            f"{path.stat().st_size} bytes: it was cut, or written over")  # fmt: skip
        if not all(shape):
            return numpy.zeros(shape, dtype)
        return numpy.memmap(path, dtype, "r", begin, shape).view(numpy.ndarray)

    def _check(self, stage, layer):
        found, wanted = len(self._arrays[stage, layer]), sum(call.rows_of(stage) for call in self._dump.calls)
        if found != wanted:
            raise DumpError(f"{self._files[stage, layer]}: expected {wanted} rows, as calls.jsonl says, found {found}: calls "
                            "were overwritten, or recorded without a line")  # fmt: skip

    def _keep_complete_calls(self):
        """Leaves out the calls from the first one on whose rows are not all there."""
        left = {key: len(array) for key, array in self._arrays.items()}
        for number, call in enumerate(self._dump.calls):
            for stage, layer in left:
                left[stage, layer] -= call.rows_of(stage)
            if min(left.values(), default=0) < 0:
                del self._dump.calls[number:]
                return


class _Safetensors:
    """One file for each call; shapes say how many of its last rows there are."""

    def __init__(self, dump):
        self._dump = dump
        self._files = sorted(dump.path.glob("call_*.safetensors"))
        self.keys, self._shapes = [], []
        if sorted(dump.path.rglob("*.npy")):
            raise DumpError(f"{dump.path}: holds npy and safetensors: expected one of the two forms")
        if len(self._files) != len(dump.calls) and dump.complete or len(self._files) < len(dump.calls):
            raise DumpError(f"{dump.path}: expected {len(dump.calls)} files, as calls.jsonl says, found {len(self._files)}")
        self._files = self._files[: len(dump.calls)]
        for number, file in enumerate(self._files):
            if file.name != f"call_{number:05}.safetensors":
                raise DumpError(f"{file}: expected call_{number:05}.safetensors: a file for each call, in order")
            arrays = load_safetensors(file, bits=True)
            self._shapes.append({})
            for name, array in arrays.items():
                key = _key(*(name.split("/", 1) if "/" in name else ("", name)))
                if len(array) > dump.calls[number].rows:
                    raise DumpError(f"{file}: {name}: has {len(array)} rows, the call {dump.calls[number].rows}")
                self._shapes[number][key[0]] = len(array)
                if key not in self.keys:
                    self.keys.append(key)

    def rows_of(self, number, stage):
        return self._shapes[number].get(stage, 0)

    def read(self, stage, layer):
        name = stage if layer is None else f"layer_{layer:02}/{stage}"
        found = [_raw(arrays[name]) for arrays in (load_safetensors(file, bits=True) for file in self._files) if name in arrays]
        return numpy.concatenate(found)


def _raw(array):
    """Bits of bf16, which alone come in two bytes, as V2."""
    return array.view("V2") if array.dtype == numpy.dtype("<u2") else array


def _widened(values):
    return from_bits(values.view("<u2"), "BF16") if values.dtype.kind == "V" else values


def _info(path):
    try:
        info = json.loads((path / "dump.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DumpError(f"{path}: is no dump: it has no dump.json") from None
    except ValueError as error:
        raise DumpError(f"{path}/dump.json: cannot be read: {error}") from None
    if not isinstance(info, dict) or info.get("format") != FORMAT:
        raise DumpError(f"{path}/dump.json: is no dump: expected the format {FORMAT!r}")
    if info.get("version") != VERSION:
        raise DumpError(f"{path}/dump.json: expected version {VERSION}, found {info.get('version')!r}: take the moe_diag of its recorder")
    return info


def _calls(path, complete):
    try:
        text = (path / "calls.jsonl").read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DumpError(f"{path}: has no calls.jsonl, which says what each row is") from None
    lines = text.split("\n")
    if lines.pop() and complete:
        raise DumpError(f"{path}/calls.jsonl: the last line has no end")
    calls, after = [], {}
    for number, line in enumerate(lines, 1):
        try:
            calls.append(_call(json.loads(line), after))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DumpError(f"{path}/calls.jsonl:{number}: is no call: {error}") from None
    return calls


def _call(line, after):
    """A call; `after` has the position behind the last call of each request."""
    requests, positions, tokens = [], [], []
    parts = line.get("parts", [line])
    padding = line.get("padding", 0)
    for part in parts:
        request, ids = str(part.get("request", "0")), part.get("tokens")
        count = part.get("rows", len(ids) if ids is not None else len(part.get("positions", ())))
        first = part.get("first", after.get(request, 0))
        at = part.get("positions", range(first, first + count))
        for what, values in (("tokens", ids), ("positions", at)):
            if values is not None and len(values) != count:
                raise ValueError(f"expected {count} {what}, found {len(values)}")
        if count <= 0:
            raise ValueError(f"expected rows, found {count}")
        requests += [request] * count
        positions += at
        tokens = None if ids is None or tokens is None else tokens + ids
        own = count - (padding if part is parts[-1] else 0)
        after[request] = max(at[:own], default=-1) + 1
    return DumpCall(len(requests), tuple(requests), tuple(positions), None if tokens is None else tuple(tokens), padding,
                    line.get("recorded"), line)  # fmt: skip


def _key(folder, stage):
    """The stage and the layer of a file or a tensor."""
    found = re.fullmatch(r"layer_(\d{2,})", folder)
    if folder and not found:
        raise DumpError(f"{folder}/{stage}: expected a folder layer_00, layer_01, ...")
    return ALIASES.get(stage, stage), int(found[1]) if found else None


def _npy_header(path, info):
    """Type and shape of an npy file, and where its values begin."""
    with open(path, "rb") as file:
        start = file.read(12)
        if start[:6] != b"\x93NUMPY" or len(start) < 12 or start[6] not in (1, 2, 3):
            raise DumpError(f"{path}: is no npy file")
        length, begin = (int.from_bytes(start[8:10], "little"), 10) if start[6] == 1 else (int.from_bytes(start[8:12], "little"), 12)
        file.seek(begin)
        try:
            header = ast.literal_eval(file.read(length).decode("latin-1"))
            descr, shape = header["descr"], tuple(header["shape"])
        except (ValueError, SyntaxError, KeyError, TypeError):
            raise DumpError(f"{path}: has a damaged header") from None
    if header.get("fortran_order"):
        raise DumpError(f"{path}: is in Fortran order: expected C order, rows first")
    if not isinstance(descr, str) or descr[:1] not in "<|" or descr[1:] not in KINDS or not shape:
        raise DumpError(f"{path}: expected an array [rows, ...] of {', '.join(KINDS)}, little-endian, found {descr!r}, {list(shape)}")
    if descr[1:] == "u2" and info.get("bf16_as") == "u2" and path.name.split(".npy")[0] != "moe_router_indices":
        descr = "|V2"
    return numpy.dtype(descr), shape, begin + length
