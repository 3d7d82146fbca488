# SPDX-License-Identifier: MIT
"""Reads and writes safetensors files, with the types that numpy lacks. Needs numpy alone.

    arrays = load_safetensors("in.safetensors")              # BF16 and FP8 as float32, exactly
    bits = load_safetensors("in.safetensors", bits=True)     # BF16 as uint16, FP8 as uint8
    tensors = load_safetensors("in.safetensors", torch=True) # torch tensors of the file's own types

    save_safetensors("out.safetensors", {"moe_ffn_out": array})
    save_safetensors("out.safetensors", {"moe_ffn_out": array}, {"moe_ffn_out": "BF16"})   # rounded, ties to even

An array of the package ml_dtypes and a torch tensor are written in their own types. `to_bits` and `from_bits` round and widen
without a file.
"""

from __future__ import annotations

import json
import pathlib
import struct

import numpy

__all__ = ["SafetensorsError", "from_bits", "load_safetensors", "save_safetensors", "to_bits"]

# Types that numpy has.
PLAIN = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8",
         "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?"}  # fmt: skip
# Types that it lacks: how many bytes, exponent bits and mantissa bits, and whether there is an infinity.
SMALL = {"BF16": (2, 8, 7, True), "F8_E4M3": (1, 4, 3, False), "F8_E5M2": (1, 5, 2, True)}
# Names of types in ml_dtypes and torch.
OTHER_NAMES = {"bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
LARGEST_HEADER = 100_000_000  # bytes; the format's own limit


class SafetensorsError(ValueError):
    """A file that is no safetensors file, or an array that has no type there."""


def load_safetensors(path, *, bits=False, torch=False, device=None):
    """The tensors of a file by name. BF16 and FP8, which numpy lacks, are widened to float32, which is exact; `bits` leaves
    them as uint16 and uint8; `torch` gives torch tensors of the file's types, on `device`. Raises SafetensorsError for a file
    that is not whole."""
    data = pathlib.Path(path).read_bytes()
    header, begin = _header(path, data)
    arrays = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        array, dtype = _array(path, data, begin, name, entry)
        if torch:
            arrays[name] = _to_torch(array, dtype, device)
        else:
            arrays[name] = from_bits(array, dtype) if dtype in SMALL and not bits else array
    return arrays


def load_metadata(path):
    """The texts that a file has beside its tensors."""
    return _header(path, pathlib.Path(path).read_bytes())[0].get("__metadata__", {})


def save_safetensors(path, tensors, types=None, metadata=None):
    """Writes arrays or torch tensors by name. `types` names the type of some, "BF16" for example: floats are rounded to it,
    and unsigned integers of its width are taken as its bits. Else an array has its own type."""
    stored = {name: _stored(name, values, (types or {}).get(name)) for name, values in tensors.items()}
    pieces = [array.tobytes() for array, _ in stored.values()]  # before the file is opened: arrays may be views of it
    with open(path, "wb") as file:
        write_header(file, {name: (dtype, array.shape, array.nbytes) for name, (array, dtype) in stored.items()}, metadata)
        file.writelines(pieces)


def write_header(file, entries, metadata=None):
    """Begins a file: type, shape and number of bytes of each tensor by name. The bytes themselves follow in the same order."""
    header, end = {}, 0
    if metadata:
        header["__metadata__"] = {str(key): str(value) for key, value in metadata.items()}
    for name, (dtype, shape, nbytes) in entries.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + nbytes]}
        end += nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)


def from_bits(bits, dtype):
    """The values of BF16, F8_E4M3 or F8_E5M2 as float32, exactly."""
    size, exponent, mantissa, _ = _small(dtype)
    bits = numpy.asarray(bits)
    if bits.dtype != numpy.dtype(f"u{size}"):
        raise SafetensorsError(f"bits of {dtype}: expected uint{8 * size}, found {bits.dtype}")
    if dtype == "BF16":
        return (bits.astype("<u4") << 16).view("<f4")
    table = numpy.array([_value_of(code, dtype, exponent, mantissa) for code in range(256)], "<f4")
    return table[bits]


def to_bits(values, dtype):
    """Values rounded to BF16, F8_E4M3 or F8_E5M2, ties to even, as unsigned integers. Beyond the range are an infinity in BF16
    and E5M2, and NaN in E4M3, which has no infinity: clamp before, where a kernel saturates."""
    size, exponent, mantissa, has_infinity = _small(dtype)
    values = numpy.asarray(values)
    if dtype == "BF16" and values.dtype == numpy.float32:
        bits = numpy.ascontiguousarray(values).view("<u4")
        rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        return numpy.where(numpy.isnan(values), bits >> 16 | 0x40, rounded).astype("<u2")
    # In steps of the type's own at the value's exponent: exact in double, and rounded once.
    x = values.astype(numpy.float64)
    bias = 2 ** (exponent - 1) - 1
    finite = numpy.isfinite(x)
    size_of = numpy.where(finite, numpy.abs(x), 0.0)
    place = numpy.maximum(numpy.frexp(size_of)[1] - 1, 1 - bias)
    steps = numpy.rint(numpy.ldexp(size_of, mantissa - place)).astype(numpy.int64)
    code = numpy.where(steps >> mantissa == 0, steps, steps + ((place + bias - 1) << mantissa))
    last = (2**exponent - 1) << mantissa  # the infinity, or where E4M3 has values up to the one that is NaN
    beyond = last if has_infinity else last + 2**mantissa - 1
    code = numpy.where(~finite | (code >= beyond), beyond, code)
    code = numpy.where(numpy.isnan(x), last + 2**mantissa - 1 if not has_infinity else last + 2 ** (mantissa - 1), code)
    return (code | numpy.signbit(x).astype(numpy.int64) << (8 * size - 1)).astype(f"<u{size}")


def _small(dtype):
    if dtype not in SMALL:
        raise SafetensorsError(f"type {dtype!r}: expected one of {', '.join(SMALL)}")
    return SMALL[dtype]


def _value_of(code, dtype, exponent, mantissa):
    sign = -1.0 if code >> 7 else 1.0
    field, fraction = code >> mantissa & (2**exponent - 1), code & (2**mantissa - 1)
    bias = 2 ** (exponent - 1) - 1
    if dtype == "F8_E4M3" and code & 0x7F == 0x7F:
        return numpy.nan
    if dtype == "F8_E5M2" and field == 2**exponent - 1:
        return numpy.nan if fraction else sign * numpy.inf
    if field == 0:
        return sign * fraction * 2.0 ** (1 - bias - mantissa)
    return sign * (1 + fraction / 2**mantissa) * 2.0 ** (field - bias)


def _header(path, data):
    """The header of a file, and where its data begin."""
    if len(data) < 8:
        raise SafetensorsError(f"{path}: no safetensors file: expected 8 bytes of length, found {len(data)} bytes")
    (length,) = struct.unpack("<Q", data[:8])
    if length > min(len(data) - 8, LARGEST_HEADER):
        raise SafetensorsError(f"{path}: no safetensors file, or cut off: expected a header of {length} bytes, found {len(data) - 8}")
    try:
        header = json.loads(data[8 : 8 + length])
    except ValueError as error:
        raise SafetensorsError(f"{path}: the header is no JSON: {error}") from error
    if not isinstance(header, dict):
        raise SafetensorsError(f"{path}: the header is no JSON object")
    return header, 8 + length


def _array(path, data, begin, name, entry):
    """A tensor as numpy can have it, and its type in the file."""
    try:
        dtype, shape, (first, last) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise SafetensorsError(f"{path}: tensor {name!r}: expected dtype, shape and two data_offsets, found {entry}") from error
    if dtype not in PLAIN and dtype not in SMALL:
        raise SafetensorsError(f"{path}: tensor {name!r}: type {dtype}: expected one of {', '.join([*PLAIN, *SMALL])}")
    kind = numpy.dtype(PLAIN.get(dtype) or f"<u{SMALL[dtype][0]}")
    wanted = kind.itemsize * int(numpy.prod(shape, dtype=object))
    if not 0 <= first <= last <= len(data) - begin or last - first != wanted:
        raise SafetensorsError(
            f"{path}: tensor {name!r}: expected {wanted} bytes for {dtype} {list(shape)}, found {first} to {last} of {len(data) - begin}"
        )
    return numpy.frombuffer(data, kind, offset=begin + first, count=wanted // kind.itemsize).reshape(shape), dtype


def _stored(name, values, dtype):
    """What is written of an array or a torch tensor: an array of that many bytes, and its type."""
    own = OTHER_NAMES.get(str(values.dtype).removeprefix("torch.")) if hasattr(values, "dtype") else None
    if hasattr(values, "detach"):
        values = _from_torch(values, own)
    array = numpy.ascontiguousarray(values).reshape(numpy.shape(values))
    if own and array.dtype.kind != "u":  # of ml_dtypes
        array = array.view(f"u{SMALL[own][0]}")
    if dtype is None or dtype == own:
        found = own or _name_of(name, array)
        return array.astype(array.dtype.newbyteorder("<"), copy=False), found
    if own:
        array = from_bits(array, own)
    if dtype in SMALL:
        is_bits = array.dtype.kind == "u" and array.dtype.itemsize == SMALL[dtype][0]
        return (array.astype(f"<u{SMALL[dtype][0]}") if is_bits else to_bits(array, dtype)), dtype
    if dtype not in PLAIN:
        raise SafetensorsError(f"tensor {name!r}: type {dtype!r}: expected one of {', '.join([*PLAIN, *SMALL])}")
    return array.astype(PLAIN[dtype]), dtype


def _name_of(name, array):
    for dtype, kind in PLAIN.items():
        if array.dtype == numpy.dtype(kind):
            return dtype
    raise SafetensorsError(f"tensor {name!r}: safetensors has no type for {array.dtype}: convert it, to float32 for example")


def _to_torch(array, dtype, device):
    import torch

    kind = {code: name for name, code in OTHER_NAMES.items()}.get(dtype)
    tensor = torch.from_numpy((array.view(numpy.int16) if dtype == "BF16" else array).copy())
    if kind:
        tensor = tensor.view(getattr(torch, kind))
    return tensor if device is None else tensor.to(device)


def _from_torch(tensor, own):
    """A torch tensor as an array; what numpy lacks as bits."""
    import torch

    tensor = tensor.detach().cpu().contiguous()
    if own:
        return tensor.view(torch.int16 if own == "BF16" else torch.uint8).numpy().view(f"u{SMALL[own][0]}")
    return tensor.numpy()
