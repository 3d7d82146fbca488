# SPDX-License-Identifier: MIT
"""Reads captures of moe-diag: what the sinks `npy` (a folder) and `hdf5` (a file) wrote. Needs numpy; for HDF5 h5py.

    import moe_diag

    capture = moe_diag.open_capture("out")                       # or "out/dump", "out/capture.h5"
    capture["short", "f32", 2, "moe_ffn_out"]                    # array [positions, ...]: prompt, lane, layer, stage
    capture["short", "f32", None, "lm_head"]                     # stages of the whole model have no layer
    capture.tensor("short", "f32", 2, "moe_ffn_out").positions   # the position of each row

    capture.prompts, capture.lanes, capture.layers, capture.stages   # what there is
    capture.select(lane="f32", stage="moe_ffn_out")                  # the tensors of all prompts and layers
    capture.select(stage="moe_router_*")                             # a glob, as in contracts
    capture.manifest["model"]["config"]["experts"]                   # what was run, on what, by which lanes

    capture.check()                                              # sizes and shapes, and digests with the module xxhash
    for failure in capture.join("out/verdict.json"):             # where falsifiers fail, with the rows of both lanes
        print(failure.falsifier, failure.stage, failure.row, failure.reference_row, failure.missing)

Negative layers count from the last; stages have the aliases of `moe-diag stages`. An array is read when it is asked for:
of a folder it is a read-only view of the file. A capture that is not complete is refused with a CaptureError.
"""

from __future__ import annotations

import difflib
import fnmatch
import json
import pathlib
from dataclasses import dataclass, field

import numpy

__all__ = ["Capture", "CaptureError", "Failure", "Tensor", "open_capture"]

# In forward order.
STAGES = (
    "embedding attn_norm qkv_matmul q_norm k_norm q_post_rope k_post_rope attn_scores attn_softmax attention attn_out "
    "post_attn_residual ffn_norm moe_router_logits moe_router_probs moe_router_indices moe_router_weights "
    "moe_expert_gate moe_expert_up moe_expert_swiglu moe_expert_out moe_expert_weighted moe_ffn_out post_ffn_residual "
    "final_norm lm_head"
).split()
ALIASES = {
    "moe_router": "moe_router_weights",
    "moe_expert_swigl": "moe_expert_swiglu",
    "layer_output": "post_ffn_residual",
}
DTYPES = {"f32": numpy.dtype("<f4"), "f64": numpy.dtype("<f8"), "i32": numpy.dtype("<i4"), "f16": numpy.dtype("<f2"),
          "bf16": numpy.dtype("V2")}  # fmt: skip
FORMAT, NEWEST_VERSION = "moe-diag capture", 1
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
PIECE = 1 << 24  # bytes that are digested at a time


class CaptureError(Exception):
    """What keeps a capture from being read; the message says what to do."""


@dataclass(frozen=True)
class Tensor:
    """One array of a capture: values of a stage at some positions of a prompt, as a lane computed them."""

    prompt: str
    lane: str
    layer: int | None  # None: a stage of the whole model
    stage: str
    dtype: str  # f32, f64, i32, f16 or bf16; numpy has no bf16, so that such an array is read as float32, exactly
    shape: tuple  # positions first
    positions: tuple = field(repr=False)  # absolute, ascending: one a row
    place: str = field(repr=False)  # file in the folder, or array in the file
    xxh3: str = field(repr=False)

    @property
    def key(self):
        return self.prompt, self.lane, self.layer, self.stage


@dataclass(frozen=True)
class Failure:
    """A site where a falsifier fails. Arrays that the capture lacks are None, and `missing` says which and why."""

    falsifier: str  # its id
    site: dict  # as in the verdict: the worst sample there, and how many fail
    tensor: Tensor | None  # of the lane judged
    values: numpy.ndarray | None = field(repr=False)  # of the tensor, all captured positions
    reference: numpy.ndarray | None = field(repr=False)  # of the lane it is compared with
    row: numpy.ndarray | None = field(repr=False)  # of `values`, at the failing position
    reference_row: numpy.ndarray | None = field(repr=False)  # of `reference`, at the failing position
    missing: str  # what was not captured; empty: `row` and `reference_row` are there

    @property
    def prompt(self):
        return self.site["prompt"]

    @property
    def layer(self):
        return self.site["layer"]

    @property
    def stage(self):
        return self.site["stage"]

    @property
    def position(self):
        return self.site["position"]


def open_capture(path):
    """Opens a folder of the sink npy, a file of the sink hdf5, or the one of them in a run's output folder. Raises
    CaptureError when it is not a complete capture."""
    path = pathlib.Path(path)
    if path.is_dir():
        path = _capture_in(path)
    if path.is_dir():
        return Capture(_Folder(path))
    if path.is_file() and not path.name.endswith(".partial"):
        return Capture(_File(path))
    if path.is_file() or path.with_name(path.name + ".partial").is_file():
        raise CaptureError(f"{path}: not complete: its run is still going, or was stopped")
    raise CaptureError(f"{path}: there is no such folder or file")


class Capture:
    """All arrays of one capture, by [prompt, lane, layer, stage]."""

    def __init__(self, storage):
        self._storage = storage
        self.path = storage.path
        self.manifest = storage.manifest
        self.tensors = storage.tensors
        self._by_key = {tensor.key: tensor for tensor in self.tensors}
        self.prompts = [prompt["id"] for prompt in self.manifest["prompts"]]
        self.lanes = [lane["name"] for lane in self.manifest["lanes"]]
        self.layers = sorted({tensor.layer for tensor in self.tensors if tensor.layer is not None})
        self.stages = list(dict.fromkeys(tensor.stage for tensor in self.tensors))

    def __repr__(self):
        counts = ", ".join(
            f"{len(names)} {what}{'' if len(names) == 1 else 's'}"
            for what, names in (("prompt", self.prompts), ("lane", self.lanes), ("layer", self.layers),
                                ("stage", self.stages), ("tensor", self.tensors))
        )  # fmt: skip
        return f"<Capture {self.path}: {counts}>"

    def __getitem__(self, key):
        return self._storage.read(self.tensor(*key))

    def __contains__(self, key):
        return self._key(*key) in self._by_key

    def __len__(self):
        return len(self.tensors)

    def __iter__(self):
        return iter(self._by_key)

    def tensor(self, prompt, lane, layer, stage):
        """What is known of an array without reading it. Raises KeyError, naming what there is instead."""
        key = self._key(prompt, lane, layer, stage)
        if key not in self._by_key:
            raise KeyError(self._missing(*key))
        return self._by_key[key]

    def select(self, prompt=None, lane=None, layer=None, stage=None):
        """The tensors that have all that is given, in forward order; `stage` may be a glob, as in contracts. Raises
        KeyError for a prompt, lane, layer or stage that no tensor has, naming those there are."""
        prompt, lane, layer, stage = self._key(prompt, lane, layer, stage)
        known = {"prompt": (prompt, self.prompts), "lane": (lane, self.lanes), "layer": (layer, self.layers)}
        for what, (value, names) in known.items():
            if value is not None and value not in names:
                raise KeyError(_unknown(what, value, names))
        stages = self.stages if stage is None else [s for s in self.stages if fnmatch.fnmatchcase(s, stage)]
        if not stages:
            raise KeyError(_unknown("stage", stage, self.stages))
        wanted = (prompt, lane, layer)
        fits = lambda t: t.stage in stages and all(want in (None, have) for want, have in zip(wanted, t.key))  # noqa: E731
        return [t for t in self.tensors if fits(t)]

    def check(self):
        """Compares every array with what the manifest says of it: type, size and shape, and the digest when the module
        xxhash is there. Returns whether digests were compared; raises CaptureError with all that is wrong."""
        try:
            import xxhash
        except ImportError:
            xxhash = None
        wrong = []
        for tensor in self.tensors:
            mistake = self._storage.mistake(tensor)
            if not mistake and xxhash:
                digest = xxhash.xxh3_64()
                for piece in self._storage.pieces(tensor):
                    digest.update(piece)
                if digest.hexdigest() != tensor.xxh3:
                    mistake = f"its digest is {digest.hexdigest()}, was {tensor.xxh3} when it was written"
            if mistake:
                wrong.append(f"{tensor.place}: {mistake}")
        if wrong:
            raise CaptureError("\n".join(wrong))
        return xxhash is not None

    def join(self, verdict):
        """Where the falsifiers of a verdict fail, falsifier after falsifier, captured or not. `verdict` is the path of
        verdict.json, or what json.load makes of it. Raises CaptureError when it is of another run."""
        verdict = self._verdict(verdict)
        failures = []
        for falsifier in verdict["falsifiers"]:
            for site in falsifier["sites"]:
                if not site["failing"] or site["stage"] is None:
                    continue
                failures.append(self._failure(falsifier, site))
        return failures

    def _failure(self, falsifier, site):
        """A failing site with what was captured of it."""
        tensor, values, row, missing = self._captured(falsifier["lane"], site)
        _, reference, reference_row, also_missing = self._captured(falsifier["against"], site)
        missing = "; ".join(filter(None, (missing, also_missing)))
        return Failure(falsifier["id"], site, tensor, values, reference, row, reference_row, missing)

    def _captured(self, lane, site):
        """A lane's tensor at the site, its values, their row at the failing position, and why one of these is None."""
        if lane is None:
            return None, None, None, "the falsifier compares with no other lane"
        layer = "" if site["layer"] is None else f"layer {site['layer']}, "
        where = f"{layer}{site['stage']} of lane '{lane}'"
        tensor = self._by_key.get((site["prompt"], lane, site["layer"], site["stage"]))
        if tensor is None:
            return None, None, None, f"{where} was not captured for prompt '{site['prompt']}'"
        values = self._storage.read(tensor)
        if site["position"] not in tensor.positions:
            have = ", ".join(map(str, tensor.positions))
            return tensor, values, None, f"{where} was captured at {have}, not at position {site['position']}"
        return tensor, values, values[tensor.positions.index(site["position"])], ""

    def _key(self, prompt, lane, layer, stage):
        if layer is not None and layer < 0:
            layer += self.manifest["model"]["config"]["layers"]
        return prompt, lane, layer, ALIASES.get(stage, stage)

    def _missing(self, prompt, lane, layer, stage):
        for what, value, known in (("prompt", prompt, self.prompts), ("lane", lane, self.lanes), ("stage", stage, self.stages)):
            if value not in known:
                return _unknown(what, value, known)
        layers = [t.layer for t in self.tensors if (t.prompt, t.lane, t.stage) == (prompt, lane, stage)]
        if layers == [None]:
            return f"{stage} belongs to the whole model: its layer is None, found {layer}"
        if not layers:
            return f"{stage} of lane '{lane}' was not captured for the prompt '{prompt}'"
        return f"{stage} of layer {layer} was not captured; its layers here are {', '.join(map(str, layers))}"

    def _verdict(self, verdict):
        if not isinstance(verdict, dict):
            verdict = json.loads(pathlib.Path(verdict).read_text(encoding="utf-8"))
        mine = self.manifest["contract"]
        for one in verdict.get("verdicts", [verdict]):
            if (one["contract"]["id"], one["contract"]["version"]) != (mine["id"], mine["version"]):
                continue
            if one["model"]["digest"] != self.manifest["model"]["digest"]:
                raise CaptureError(
                    f"the verdict is of the model {one['model']['digest']}, the capture of {self.manifest['model']['digest']}"
                )
            return one
        raise CaptureError(f"the verdict is not of the contract {mine['id']} {mine['version']}, which the capture is of")


class _Folder:
    """What the sink npy wrote."""

    def __init__(self, path):
        self.path = path
        file = path / "manifest.json"
        if not file.is_file():
            if (path / "incomplete").is_file():
                raise CaptureError(f"{path}: not complete: its run is still going, or was stopped")
            raise CaptureError(f"{path}: not a capture: it has no manifest.json")
        try:
            self.manifest = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CaptureError(f"{file}: cannot be read: {error}") from error
        _check_format(file, self.manifest)
        self.tensors = [
            Tensor(t["prompt"], t["lane"], t["layer"], t["stage"], t["dtype"], tuple(t["shape"]), tuple(t["positions"]),
                   t["file"], t["xxh3"])  # fmt: skip
            for t in self.manifest["tensors"]
        ]

    def read(self, tensor):
        array = self._load(tensor)
        return _single(array) if array.dtype == DTYPES["bf16"] else array

    def _load(self, tensor):
        return numpy.load(self.path / tensor.place, mmap_mode="r" if 0 not in tensor.shape else None, allow_pickle=False)

    def mistake(self, tensor):
        try:
            array = self._load(tensor)
        except (OSError, ValueError) as error:
            return f"cannot be read: {error}"
        size = (self.path / tensor.place).stat().st_size - 128
        wanted = array.nbytes
        return _mistake(tensor, array, array.dtype) or (f"has {size} bytes of values, expected {wanted}" if size != wanted else "")

    def pieces(self, tensor):
        with open(self.path / tensor.place, "rb") as file:
            while piece := file.read(PIECE):
                yield piece


class _File:
    """What the sink hdf5 wrote."""

    def __init__(self, path):
        import h5py

        self.path = path
        self._dataset = h5py.Dataset
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise CaptureError(f"{path}: cannot be read as HDF5: {error}") from error
        head = {key: _plain(value) for key, value in self._file.attrs.items()}
        if head.get("format") == FORMAT and not head.get("complete"):
            raise CaptureError(f"{path}: not complete: its run was stopped")
        _check_format(path, head)
        for key in ("contract", "model", "prompts", "lanes", "planted"):
            head[key] = json.loads(head[key])
        self.manifest = head
        self.tensors = []
        self._file.visititems(self._visit)
        self._sort()

    def _visit(self, place, item):
        if not isinstance(item, self._dataset):
            return
        at = {key: _plain(value) for key, value in item.attrs.items()}
        stored = _stored_type(item)
        dtype = next((name for name, dtype in DTYPES.items() if dtype == stored), str(stored))
        positions = tuple(int(p) for p in at["positions"])
        self.tensors.append(Tensor(at["prompt"], at["lane"], at.get("layer"), at["stage"], dtype, item.shape, positions,
                                   place, at["xxh3"]))  # fmt: skip

    def _sort(self):
        """Prompt after prompt, lane after lane, then as the forward pass goes: HDF5 sorts by name."""
        prompts = [prompt["id"] for prompt in self.manifest["prompts"]]
        lanes = [lane["name"] for lane in self.manifest["lanes"]]
        behind = self.manifest["model"]["config"]["layers"]

        def rank(t):
            layer = t.layer if t.layer is not None else -1 if t.stage == "embedding" else behind
            return prompts.index(t.prompt), lanes.index(t.lane), layer, STAGES.index(t.stage)

        self.tensors.sort(key=rank)

    def read(self, tensor):
        return self._file[tensor.place][...]

    def mistake(self, tensor):
        return _mistake(tensor, self._file[tensor.place], _stored_type(self._file[tensor.place]))

    def pieces(self, tensor):
        array = self._file[tensor.place]
        if array.size == 0:
            return
        rows = max(1, PIECE // (array.nbytes // len(array)))
        for first in range(0, len(array), rows):
            piece = numpy.ascontiguousarray(array[first : first + rows])
            yield (piece.view("<u4") >> 16).astype("<u2") if tensor.dtype == "bf16" else piece


def _capture_in(folder):
    """The folder itself when it is a capture, or was to become one; else the only capture below it."""
    if (folder / "manifest.json").exists() or (folder / "incomplete").exists():
        return folder
    found = _captures_below(folder, 2)
    if not found:
        raise CaptureError(f"{folder}: not a capture: it has no manifest.json, and no capture is in it")
    if len(found) > 1:
        raise CaptureError(f"{folder}: has several captures, name one: {', '.join(map(str, found))}")
    return found[0]


def _captures_below(folder, depth):
    """Captures in a run's output folder, or in the folders that several contracts get there. One that was not completed
    counts: opening it says so."""
    found = []
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            if (entry / "manifest.json").exists() or (entry / "incomplete").exists():
                found.append(entry)
            elif depth > 1:
                found += _captures_below(entry, depth - 1)
        elif entry.is_file():
            with open(entry, "rb") as file:
                if file.read(len(HDF5_MAGIC)) == HDF5_MAGIC:
                    found.append(entry)
    return found


def _unknown(what, value, known):
    """No such name: which is near, and which there are."""
    names = [str(name) for name in known]
    near = difflib.get_close_matches(str(value), names, 1)
    hint = f", did you mean '{near[0]}'?" if near else "."
    return f"no {what} '{value}' in the capture{hint} There is: {', '.join(names) or 'none'}"


def _of_layer(site):
    return "" if site["layer"] is None else f", layer {site['layer']},"


def _plain(value):
    """An attribute as Python has it."""
    if isinstance(value, bytes):
        return value.decode()
    return value.item() if isinstance(value, numpy.generic) and not isinstance(value, numpy.bytes_) else value


def _check_format(path, manifest):
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CaptureError(f"{path}: not a capture of moe-diag")
    if manifest["format_version"] > NEWEST_VERSION:
        raise CaptureError(
            f"{path}: has format version {manifest['format_version']}, this module reads up to {NEWEST_VERSION}: take the "
            "module of the moe-diag that wrote it"
        )


def _single(array):
    """The values of an array of bf16, which numpy reads as pairs of bytes."""
    return (numpy.ascontiguousarray(array).view("<u2").astype("<u4") << 16).view("<f4")


def _stored_type(dataset):
    """h5py reads bf16 as float32."""
    return DTYPES["bf16"] if dataset.dtype == DTYPES["f32"] and dataset.id.get_type().get_size() == 2 else dataset.dtype


def _mistake(tensor, array, dtype):
    """Why an array of that type is not what is said of it; empty: it is."""
    if dtype != DTYPES.get(tensor.dtype) or array.shape != tensor.shape:
        return f"is {dtype} {array.shape}, expected {tensor.dtype} {tensor.shape}"
    if len(array) != len(tensor.positions):
        return f"has {len(array)} rows, expected one for each of {len(tensor.positions)} positions"
    return ""
