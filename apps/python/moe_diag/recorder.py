# SPDX-License-Identifier: MIT
"""Records the tensors of an engine of your own, for `moe-diag judge MODEL DUMP`. Needs numpy alone.

    from moe_diag import Recorder

    with Recorder("dump", engine="my port 0.3", numerics="bf16", stored="bf16") as recorder:
        for tokens in (prompt, [next_token]):
            with recorder.call(tokens=tokens, mode="eager") as call:      # one forward pass
                call("embedding", None, x)                                # array [rows, ...] of a stage of the whole model
                call("moe_router_indices", 7, ids)                        # of layer 7
                call("lm_head", None, logits, last=1)                     # only the last row of the pass was computed

Arrays are numpy arrays, also of the package ml_dtypes, or torch tensors. numpy has no bf16: `dtype="bf16"` rounds float32 to
it, ties to even, and takes uint16 and V2 as its bits. An exception inside a call discards the call's rows. A dump is complete
once the recorder is closed without an exception; docs/record-tensors.md has the layout. A recorder is used by one thread.

    dump = moe_diag.open_dump("dump")
    dump["moe_ffn_out", 7]         # array [rows of all calls, ...]; help(moe_diag.dumps) says more
"""

from __future__ import annotations

import difflib
import fnmatch
import json
import operator
import os
import pathlib
import sys

import numpy

from .captures import ALIASES, STAGES
from .tensors import to_bits

__all__ = ["RecordError", "Recorder"]

FORMAT, VERSION = "moe-diag dump", 1
HEADER = 128  # bytes of an npy header: room for any number of rows
# Stages of Qwen2-MoE that Qwen3-MoE lacks.
SHARED_STAGES = (
    "moe_shared_gate moe_shared_up moe_shared_swiglu moe_shared_out moe_shared_logit moe_shared_weighted ffn_out"
).split()
ALL_STAGES = [*STAGES, *SHARED_STAGES]
MODEL_STAGES = ("embedding", "final_norm", "lm_head")
INDEX_STAGES = ("moe_router_indices",)
LARGEST_ID = 65535  # of an expert: more is memory that nobody wrote
FACTS = ("mode", "graph_size", "kernel", "rank")  # of a call, optional: errors are grouped by them


class RecordError(ValueError):
    """An array, a call or a folder that cannot be recorded; the message says what to do."""


class Recorder:
    """Writes one dump. `layers` and `stages` leave out the others, `calls` are the only ones whose rows are kept (the others
    are listed without), `last` keeps that many of the last rows of each call. `engine`, `numerics`, `stored` and `model` are
    words for dump.json, as in a contract; more of them go to `facts`."""

    def __init__(self, path, *, engine="", numerics=None, stored=None, model=None, layers=None, stages=None, calls=None,
                 last=None):  # fmt: skip
        self.path = pathlib.Path(path)
        self.facts = {"engine": engine, "numerics": numerics, "stored": stored, "model": model}
        self._layers, self._calls = _numbers("layers", layers), _numbers("calls", calls)
        self._stages = _stage_filter(stages)
        self._last = None if last is None else _natural("last", last)
        self._arrays = {}  # by (stage, layer)
        self._next = {}  # the position behind the last call, by request
        self._lines = []  # what calls.jsonl has
        self._open_call, self._closed = None, False
        if not str(engine):
            raise RecordError(f"{path}: engine: expected a name and version, found none: Recorder({str(path)!r}, engine=...)")
        try:
            self.path.mkdir(parents=True)
        except FileExistsError:
            raise RecordError(f"{path}: exists: a dump is written into a new folder; name another, or remove it") from None
        self._write_info({})
        (self.path / "calls.jsonl").touch()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is None:
            self.close()

    def call(self, request="0", first=None, tokens=None, mode=None, *, rows=None, positions=None, parts=None, padding=0,
             **facts):  # fmt: skip
        """One forward pass, as a context manager that takes its arrays. `rows` is the number of tokens unless it is said.
        `first` is the position of the first row, else behind the last call of the request; or `positions` has one for each row.
        `parts` are the requests of a batch, whose rows follow each other: dicts with request, first, rows and tokens.
        `padding`: the last rows, counted in `rows`, that mean nothing. Facts: graph_size, kernel, rank."""
        if self._closed:
            raise RecordError(f"{self.path}: closed: a call was begun after the end of the dump")
        if self._open_call:
            raise RecordError(f"{self.path}: call {len(self._lines)} is not finished: one call at a time")
        unknown = [name for name in facts if name not in FACTS]
        if unknown:
            raise RecordError(f"call: no fact '{unknown[0]}'{_nearest(unknown[0], FACTS)}: expected {', '.join(FACTS)}")
        where = f"call {len(self._lines)}"
        if parts is None:
            line = self._part(where, request, first, rows, tokens, positions)
        elif not parts or any(value is not None for value in (first, rows, tokens, positions)):
            raise RecordError(f"{where}: parts: expected one request or more, and nothing beside them but padding and facts")
        else:
            line = {"parts": [self._part(where, **{"request": "0", "first": None, "rows": None, "tokens": None,
                                                   "positions": None, **part}) for part in parts]}  # fmt: skip
        count = sum(part["rows"] for part in line.get("parts", [line]))
        if padding:
            line["padding"] = _natural("padding", padding)
            if padding >= count:
                raise RecordError(f"{where}: padding {padding}: the call has {count} rows, padding among them")
        line.update({name: value for name, value in {"mode": mode, **facts}.items() if value is not None})
        wanted = self._calls is None or len(self._lines) in self._calls
        self._open_call = _Call(self, len(self._lines), line, count, wanted)
        return self._open_call

    def close(self):
        """Completes the dump: arrays get their number of rows and their names. A second call does nothing."""
        if self._closed:
            return
        if self._open_call:
            raise RecordError(f"{self.path}: call {self._open_call.number} is not finished: close the recorder behind it")
        for array in self._arrays.values():
            array.finish()
        self._closed = True
        self._write_info({"closed": True, "calls": len(self._lines)})

    def wants(self, stage, layer=None):
        """Whether the filters of stages and layers keep an array."""
        stage = _stage(stage)
        return (self._stages is None or stage in self._stages) and (
            layer is None or self._layers is None or layer in self._layers
        )

    def _part(self, where, request, first, rows, tokens, positions):
        """What is known of the rows of one request."""
        if tokens is not None:
            tokens = [_natural(f"{where}: tokens", token) for token in _plain(tokens)]
        if positions is not None:
            positions = [_natural(f"{where}: positions", position) for position in _plain(positions)]
        counts = {"rows": rows, "tokens": tokens, "positions": positions}
        counts = {name: n if name == "rows" else len(n) for name, n in counts.items() if n is not None}
        if not counts:
            raise RecordError(f"{where}: the number of rows is not known: give tokens, or rows=")
        if len(set(counts.values())) > 1:
            raise RecordError(f"{where}: expected as many of each, found {', '.join(f'{n} {name}' for name, n in counts.items())}")
        count = _natural(f"{where}: rows", next(iter(counts.values())))
        if not count:
            raise RecordError(f"{where}: has no rows: leave the call out")
        if positions is not None and first is not None:
            raise RecordError(f"{where}: expected first or positions, found both")
        part = {"request": str(request)}
        if positions is not None:
            part["positions"] = positions
        else:
            part["first"] = self._next.get(str(request), 0) if first is None else _natural(f"{where}: first", first)
        part["rows"] = count
        if tokens is not None:
            part["tokens"] = tokens
        return part

    def _finish(self, call):
        """Writes the line of a call whose rows are in the files."""
        line = {**call.line, **call.recorded(self._arrays)}
        late = {stage for stage, layer in call.rows if not self._arrays[stage, layer].begun}
        before = [self._without(earlier, late) for earlier in self._lines]
        if before != self._lines:
            _replace(self.path / "calls.jsonl", "".join(_text(earlier) for earlier in before))
            self._lines = before
        with open(self.path / "calls.jsonl", "a", encoding="utf-8") as file:
            file.write(_text(line))
        self._lines.append(line)
        for key in call.rows:
            self._arrays[key].begun = True
        parts = line.get("parts", [line])
        for part in parts:
            rows = part["rows"] - (line.get("padding", 0) if part is parts[-1] else 0)
            after = part["first"] + rows if "first" in part else max(part["positions"][:rows], default=-1) + 1
            self._next[part["request"]] = after

    @staticmethod
    def _without(line, stages):
        """A line of a call before these stages were first recorded: it has no rows of them."""
        if not stages or line.get("recorded") == 0:
            return line
        return {**line, "recorded": {**line.get("recorded", {}), **dict.fromkeys(sorted(stages), 0)}}

    def _write_info(self, end):
        info = {"format": FORMAT, "version": VERSION, **self.facts, **end}
        info = {name: value for name, value in info.items() if value is not None}
        _replace(self.path / "dump.json", json.dumps(info, indent=2) + "\n")


class _Call:
    """One forward pass while it is recorded: `call(stage, layer, array)`; `call(stage, array)` for a stage of the whole model."""

    def __init__(self, recorder, number, line, count, wanted):
        self.number, self.line, self.wanted = number, line, wanted
        self.rows = {}  # how many were written, by (stage, layer)
        self._recorder, self._count, self._done = recorder, count, False

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        recorder, self._done = self._recorder, True
        recorder._open_call = None
        try:
            if kind is None:
                recorder._finish(self)
        except BaseException:
            kind = True
            raise
        finally:
            if kind is not None:
                for key in self.rows:
                    if not recorder._arrays[key].discard():
                        del recorder._arrays[key]

    def wants(self, stage, layer=None):
        """Whether the filters keep an array of this call: nothing else need be copied off a device."""
        return self.wanted and self._recorder._last != 0 and self._recorder.wants(stage, layer)

    def __call__(self, stage, layer=None, array=None, *, dtype=None, last=None):
        """Writes an array, which has a row for each of the call, or for its `last` ones. Returns whether the filters kept it."""
        if array is None and not isinstance(layer, (int, numpy.integer)):
            layer, array = None, layer
        stage = _stage(stage)
        where = f"call {self.number}: {stage}" + ("" if layer is None else f" of layer {layer}")
        if self._done:
            raise RecordError(f"{where}: the call is over: give its arrays inside of `with recorder.call(...) as call`")
        if array is None:
            raise RecordError(f"{where}: expected an array, found None")
        self._check_layer(where, stage, layer)
        key = (stage, layer if layer is None else operator.index(layer))
        if key in self.rows:
            raise RecordError(f"{where}: is there already: an array comes once a call; a second pass is another call")
        if not self.wants(stage, layer):
            return False
        values = _stored(where, stage, array, dtype)
        values = self._last_rows(where, values, last)
        arrays = self._recorder._arrays
        array = arrays.get(key) or _Array(self._recorder.path, key, values)
        array.append(where, values)
        arrays[key] = array
        self.rows[key] = len(values)
        return True

    def recorded(self, arrays):
        """The key `recorded` of the call's line. All layers that a stage has need the same rows, in every call."""
        if not self.wanted or not self.rows:
            return {"recorded": 0}
        counts = {}
        for (stage, layer), count in sorted(self.rows.items(), key=str):
            if counts.setdefault(stage, count) != count:
                raise RecordError(f"call {self.number}: {stage}: layer {layer} has {count} rows, others have {counts[stage]}: "
                                  "give as many of each layer")  # fmt: skip
        for stage, layer in arrays:
            counts.setdefault(stage, 0)
            if counts[stage] and (stage, layer) not in self.rows:
                raise RecordError(f"call {self.number}: {stage}: layer {layer} is missing, which calls before had: give the "
                                  "same layers in each call")  # fmt: skip
            begun_elsewhere = any(other.begun for (name, _), other in arrays.items() if name == stage)
            if not arrays[stage, layer].begun and begun_elsewhere:
                raise RecordError(f"call {self.number}: {stage}: layer {layer} is new, other layers were in calls before: give "
                                  "the same layers in each call")  # fmt: skip
        partial = {stage: count for stage, count in counts.items() if count != self._count}
        return {"recorded": partial} if partial else {}

    def _check_layer(self, where, stage, layer):
        if stage in MODEL_STAGES and layer is not None:
            raise RecordError(f"{where}: is a stage of the whole model: call({stage!r}, None, array)")
        if stage in MODEL_STAGES:
            return
        if layer is None:
            raise RecordError(f"{where}: is a stage of a layer: call({stage!r}, layer, array)")
        if isinstance(layer, bool) or not isinstance(layer, (int, numpy.integer)) or not 0 <= layer < 10000:
            raise RecordError(f"{where}: expected a number of a layer, 0 to 9999, found {layer!r}")

    def _last_rows(self, where, values, last):
        """The rows that are kept of an array, after its number of rows is seen to be right."""
        count = self._count if last is None else _natural(f"{where}: last", last)
        if count > self._count:
            raise RecordError(f"{where}: last={last}: the call has {self._count} rows")
        if len(values) != count:
            hint = "" if last is not None or len(values) > count else f"; last={len(values)} where these are its last ones"
            raise RecordError(f"{where}: expected {count} rows, as the call has, found {len(values)}, of shape "
                              f"{list(values.shape)}: rows come first{hint}")  # fmt: skip
        if self._recorder._last is None:
            return values
        kept = min(count, self._recorder._last + self.line.get("padding", 0))
        return values[len(values) - kept :]


class _Array:
    """One npy file, to which rows are added. It is opened for each call: an engine has more arrays than a process has files."""

    def __init__(self, folder, key, values):
        stage, layer = key
        self.path = folder / (f"{stage}.npy" if layer is None else f"layer_{layer:02}/{stage}.npy")
        self.part = self.path.with_name(self.path.name + ".part")
        self.begun = False  # whether a call that has it is complete
        self._dtype, self._row, self._bytes, self._kept = values.dtype, values.shape[1:], HEADER, None
        self.path.parent.mkdir(exist_ok=True)
        self.part.write_bytes(self._header(0))

    def append(self, where, values):
        if values.dtype != self._dtype:
            raise RecordError(f"{where}: expected {_name(self._dtype)}, as in calls before, found {_name(values.dtype)}: an array "
                              'has one type; dtype="bf16" rounds')  # fmt: skip
        if values.shape[1:] != self._row:
            raise RecordError(f"{where}: expected rows of shape {list(self._row)}, as in calls before, found {list(values.shape[1:])}")
        self._kept = self._bytes
        try:
            with open(self.part, "ab") as file:
                file.write(numpy.ascontiguousarray(values).data if values.dtype.kind != "V" else values.tobytes())
        except OSError:  # a full disk
            self.discard()
            raise
        self._bytes += values.nbytes

    def discard(self):
        """Takes back what was last added; whether there is anything left."""
        if not self.begun:
            self.part.unlink()
            return False
        self._bytes = self._kept
        os.truncate(self.part, self._bytes)
        return True

    def finish(self):
        size = self._dtype.itemsize * int(numpy.prod(self._row, dtype=object))
        with open(self.part, "r+b") as file:
            file.write(self._header((self._bytes - HEADER) // size))
        self.part.rename(self.path)

    def _header(self, rows):
        descr = "|V2" if self._dtype.kind == "V" else self._dtype.str
        text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {(rows, *self._row)}, }}"
        return b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little") + text.ljust(HEADER - 11).encode() + b"\n"


def _stored(where, stage, array, dtype):
    """An array as it is written: little-endian, bf16 as V2."""
    values = _to_numpy(where, array)
    if dtype == "bf16":
        values = _as_bf16(where, values)
    elif dtype is not None:
        raise RecordError(f'{where}: dtype: expected "bf16", or none for the type that the array has, found {dtype!r}')
    if not values.ndim or not values[:1].size:
        raise RecordError(f"{where}: expected an array [rows, ...], found shape {list(values.shape)}")
    if stage in INDEX_STAGES:
        return _ids(where, values)
    if values.dtype.str[1:] not in ("f4", "f8", "f2", "V2"):
        hint = ': dtype="bf16" takes uint16 as bits of bf16' if values.dtype == numpy.uint16 else ""
        raise RecordError(f"{where}: expected values in f32, f64, f16 or bf16, found {values.dtype}{hint}")
    return values if values.dtype.kind == "V" else values.astype(values.dtype.newbyteorder("<"), copy=False)


def _to_numpy(where, array):
    """An array of numpy, of ml_dtypes or of torch as one that numpy knows; bf16 as V2."""
    name = str(getattr(array, "dtype", ""))
    if hasattr(array, "detach"):  # torch is there, as its tensor is
        array = array.detach()
        array = array.contiguous().view(sys.modules["torch"].int16) if name == "torch.bfloat16" else array
        array = array.cpu().numpy()
    values = numpy.asarray(array)
    if name in ("bfloat16", "torch.bfloat16"):
        return numpy.ascontiguousarray(values).view("V2")
    if "float8" in name or "float4" in name or values.dtype.kind == "O":
        raise RecordError(f"{where}: {name or type(array).__name__}: expected values in f32, f64, f16 or bf16: convert them before")
    return values


def _as_bf16(where, values):
    if values.dtype.str[1:] == "V2":
        return values
    if values.dtype == numpy.uint16:
        return numpy.ascontiguousarray(values, "<u2").view("V2")
    if values.dtype == numpy.float16:
        values = values.astype(numpy.float32)
    if values.dtype != numpy.float32:
        raise RecordError(f'{where}: dtype="bf16": expected float32, or uint16 for bits, found {values.dtype}: rounding twice is '
                          "another value")  # fmt: skip
    return to_bits(values, "BF16").reshape(values.shape).view("V2")


def _ids(where, values):
    if values.dtype.kind not in "iu" or values.dtype.itemsize == 8 and values.dtype.kind == "u":
        raise RecordError(f"{where}: expected ids of experts in int8 to int64 or uint8 to uint32, found {_name(values.dtype)}")
    if values.ndim != 2:
        raise RecordError(f"{where}: expected shape [rows, experts a token], found {list(values.shape)}")
    wrong = numpy.argwhere((values < 0) | (values > LARGEST_ID))
    if len(wrong):
        row, slot = wrong[0]
        raise RecordError(f"{where}: row {row}, slot {slot}: expected the id of an expert, 0 to {LARGEST_ID}, found "
                          f"{values[row, slot]}; {len(wrong)} of {values.size} are none")  # fmt: skip
    return values.astype(values.dtype.newbyteorder("<"), copy=False)


def _stage(name):
    """The stage of a name or an alias."""
    stage = ALIASES.get(name, name)
    if stage not in ALL_STAGES:
        raise RecordError(f"no stage '{name}'{_nearest(str(name), [*ALL_STAGES, *ALIASES])}: `moe-diag stages` lists them")
    return stage


def _stage_filter(stages):
    """The stages that names, aliases and globs select; None: all of them."""
    if stages is None:
        return None
    found = set()
    for name in [stages] if isinstance(stages, str) else stages:
        fits = [s for s in ALL_STAGES if fnmatch.fnmatchcase(s, name)] if any(c in name for c in "*?[") else [_stage(name)]
        if not fits:
            raise RecordError(f"stages: '{name}' fits no stage: `moe-diag stages` lists them")
        found.update(ALL_STAGES if name == "all" else fits)
    if not found:
        raise RecordError("stages: is empty: leave it out for all of them")
    return found


def _numbers(what, selection):
    """Layers or calls by number: 7, "0..48" (end excluded), "0..=47", or several of these; None: all of them."""
    if selection is None or selection == "all":
        return None
    numbers = set()
    for item in [selection] if isinstance(selection, (int, str)) else selection:
        first, dots, end = str(item).partition("..")
        try:
            if dots:
                numbers.update(range(int(first), int(end.removeprefix("=")) + end.startswith("=")))
            else:
                numbers.add(int(first))
        except ValueError:
            raise RecordError(f'{what}: expected numbers, "0..4" (4 excluded) or "0..=3", found {item!r}') from None
    if not numbers or min(numbers) < 0:
        raise RecordError(f"{what}: expected numbers from 0 on, found {selection!r}")
    return numbers


def _natural(what, value):
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if number < 0 or isinstance(value, bool):
        raise RecordError(f"{what}: expected an integer from 0 on, found {value!r}")
    return number


def _plain(values):
    """A list of numbers, of whatever has them."""
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _nearest(name, names):
    near = difflib.get_close_matches(name, names, 1)
    return f", did you mean '{near[0]}'?" if near else ""


def _name(dtype):
    return "bf16" if dtype.kind == "V" else str(dtype)


def _text(line):
    return json.dumps(line) + "\n"


def _replace(path, text):
    """Writes a file in one step, as a reader sees it."""
    beside = path.with_name(path.name + ".new")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
