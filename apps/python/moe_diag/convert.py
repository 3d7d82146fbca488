# SPDX-License-Identifier: MIT
"""Converts files of torch.save to safetensors, which `moe-diag` reads. Needs numpy, not torch.

    python -m moe_diag convert dump                       # every .pt and .pth file in dump and below, each beside its original
    python -m moe_diag convert dump --out converted       # the same names, below the folder `converted`

    moe_diag.convert("dump", "converted")                 # the paths of the new files

A tensor is named by its path inside the saved object, joined by dots: "value", "model.layers.0.mlp.0"; a lone tensor is "data".
Integers and lists of integers become I64 tensors. Other values go as JSON into the metadata of the safetensors file, under the
same names. bool becomes U8. help(moe_diag.torch_files) lists the files that are refused.
"""

from __future__ import annotations

import json
import os
import pathlib

import numpy

from .tensors import write_header
from .torch_files import KINDS, Archive, Plan, StoredTensor, TorchFileError, join

__all__ = ["convert"]

SUFFIXES = (".pt", ".pth")


def convert(path, out=None, *, replace=False):
    """Converts a file, or every .pt and .pth file in a folder and below it; returns the paths of the new files. Each has the name
    of its original with .safetensors, beside it or below `out`. An existing file is refused unless `replace` is set. All files
    are tried: a TorchFileError at the end has a message for each refused file in `refused`, and the new files in `written`."""
    written, refused = [], []
    for source, target in _targets(pathlib.Path(path), out):
        try:
            if target in written:
                raise TorchFileError(f"{source}: {target} was just written from another file: rename one of the two")
            if target.exists() and not replace:
                raise TorchFileError(f"{source}: {target} exists: remove it, or write over it with --replace")
            _write(Archive(source), target)
            written.append(target)
        except TorchFileError as error:
            refused.append(str(error))
    if refused:
        error = TorchFileError("\n".join(refused))
        error.refused, error.written = refused, written
        raise error
    return written


def _targets(path, out):
    """Pairs of a file to convert and its new file."""
    if not path.is_dir():
        if not path.exists():
            raise FileNotFoundError(f"{path}: there is no such file or folder")
        return [(path, pathlib.Path(out or path.parent) / path.with_suffix(".safetensors").name)]
    sources = [source for source in sorted(path.rglob("*")) if source.suffix.lower() in SUFFIXES and source.is_file()]
    if not sources:
        raise FileNotFoundError(f"{path}: no {' or '.join(SUFFIXES)} file in it or below")
    return [(source, pathlib.Path(out or path) / source.relative_to(path).with_suffix(".safetensors")) for source in sources]


def _write(archive, target):
    """Writes one file under a temporary name, which it loses when it is complete."""
    tensors, metadata = _contents(archive)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    try:
        with open(part, "wb") as file:
            write_header(file, {name: _entry(tensor) for name, tensor in tensors.items()}, metadata)
            for tensor in tensors.values():
                array = archive.array(tensor) if isinstance(tensor, Plan) else tensor
                file.write(array.reshape(-1).view("u1"))
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _contents(archive):
    """The tensors and the metadata of a new file, by name. The bytes of the tensors are read later, one tensor at a time."""
    tensors, metadata = {}, {}
    for name, value in _leaves(archive.tree, None):
        if name in tensors or name in metadata or name == "__metadata__":
            raise archive.error(f"two values get the name {name!r}, or safetensors reserves it: rename the key and save again")
        if isinstance(value, StoredTensor):
            tensors[name] = archive.plan(name, value)
        elif _is_integers(value):
            tensors[name] = numpy.array(value, "<i8")
        else:
            metadata[name] = json.dumps(value)
    return tensors, metadata


def _leaves(value, name):
    """The values with their names. A list of plain values counts as one value."""
    if isinstance(value, dict) and value:
        items = value.items()
    elif isinstance(value, (list, tuple)) and any(isinstance(item, (dict, list, tuple, StoredTensor)) for item in value):
        items = enumerate(value)
    else:
        yield "data" if name is None else name, value
        return
    for key, item in items:
        yield from _leaves(item, join(name, key))


def _is_integers(value):
    """Whether a value is an integer or a list of integers in the range of I64."""
    items = value if isinstance(value, (list, tuple)) else [value]
    return bool(items) and all(type(item) is int and item < 1 << 63 for item in items)


def _entry(tensor):
    """Type, shape and number of bytes of a tensor in the new file."""
    dtype = KINDS[tensor.dtype][1] if isinstance(tensor, Plan) else "I64"
    return dtype, tensor.shape, tensor.nbytes
