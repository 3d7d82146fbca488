# SPDX-License-Identifier: MIT
"""Reads the files of torch.save without torch. Needs numpy alone.

    saved = moe_diag.read_torch("step=0___rank=0___name=moe_out.pt")   # {"value": array, "meta": {...}}; bf16 as float32, exactly
    saved = moe_diag.read_torch("lone.pt", bits=True)                  # bf16 as uint16

A .pt file is a zip archive: a pickle describes the tensors, and each storage has an entry with its bytes. A pickle can call any
Python function, so pickle.load runs whatever the file says. This reader has its own pickle machine: it knows a fixed list of
instructions and names, it never imports or calls a name from the file, and it refuses everything else with a TorchFileError.
Also refused: types that moe-diag does not compare, compressed entries, damaged or truncated files, big-endian files, TorchScript
archives and the format of torch before 1.6. `moe_diag.convert` writes safetensors.
"""

from __future__ import annotations

import math
import pathlib
import pickletools
import struct
import zipfile
import zlib
from dataclasses import dataclass

import numpy

from .tensors import from_bits

__all__ = ["TorchFileError", "read_torch"]

# Types of torch: the type of numpy that holds their bits, and the type of safetensors.
KINDS = {"torch.float64": ("<f8", "F64"), "torch.float32": ("<f4", "F32"), "torch.float16": ("<f2", "F16"),
         "torch.bfloat16": ("<u2", "BF16"), "torch.int64": ("<i8", "I64"), "torch.int32": ("<i4", "I32"),
         "torch.int16": ("<i2", "I16"), "torch.int8": ("i1", "I8"), "torch.uint8": ("u1", "U8"),
         "torch.bool": ("u1", "U8")}  # fmt: skip
# Types that a file may mention, though their tensors are refused.
OTHER_DTYPES = ("uint16 uint32 uint64 complex32 complex64 complex128 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz "
                "float8_e8m0fnu float4_e2m1fn_x2").split()  # fmt: skip
DTYPES = {f"torch {name}": f"torch.{name}" for name in [*(kind.split(".")[1] for kind in KINDS), *OTHER_DTYPES]}
STORAGES = {"torch DoubleStorage": "torch.float64", "torch FloatStorage": "torch.float32", "torch HalfStorage": "torch.float16",
            "torch BFloat16Storage": "torch.bfloat16", "torch LongStorage": "torch.int64", "torch IntStorage": "torch.int32",
            "torch ShortStorage": "torch.int16", "torch CharStorage": "torch.int8", "torch ByteStorage": "torch.uint8",
            "torch BoolStorage": "torch.bool", "torch ComplexFloatStorage": "torch.complex64",
            "torch ComplexDoubleStorage": "torch.complex128", "torch.storage UntypedStorage": None}  # fmt: skip
TENSOR_CLASSES = ("torch Tensor", "torch.nn.parameter Parameter")
LEGACY = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # how files of torch before 1.6 begin
LARGEST_PICKLE = 64 << 20  # bytes: describes 300 000 tensors
MOST_VALUES, DEEPEST = 1_000_000, 100  # of what was saved: a file may refer to one list many times, or to itself
MOST_DIMENSIONS = 32  # of numpy before 2.0
LARGEST_TENSORS = 16 << 30  # bytes: an expanded tensor is larger than its file


class TorchFileError(ValueError):
    """A torch.save file cannot be read or converted; the message names the file and the remedy."""

    refused, written = (), ()  # set by `convert`: a message for each refused file; the paths of the converted files


@dataclass(frozen=True)
class Global:
    """The name of a function, class or storage type; the object behind the name is never looked up."""

    name: str


@dataclass(frozen=True)
class Storage:
    """A storage as the pickle describes it."""

    dtype: str | None  # None: untyped, counted in bytes
    key: str
    numel: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as the pickle describes it, unchecked."""

    dtype: str
    storage: Storage
    offset: int  # in elements, as strides are
    shape: tuple
    strides: tuple
    flags: object = None  # a conjugated or negated view, whose storage holds other values


@dataclass(frozen=True)
class Plan:
    """A tensor whose bytes are known to lie inside its storage."""

    dtype: str
    key: str
    offset: int  # in bytes, as strides are
    shape: tuple
    strides: tuple

    @property
    def kind(self):
        return numpy.dtype(KINDS[self.dtype][0])

    @property
    def nbytes(self):
        return math.prod(self.shape) * self.kind.itemsize


def read_torch(path, *, bits=False):
    """Reads the object that torch.save wrote, with numpy arrays for its tensors. numpy has no bf16: such a tensor is widened to
    float32, which is exact; `bits` keeps it as uint16. Dtypes and devices become texts. A contiguous tensor is a read-only view
    of the file. Raises TorchFileError for damaged files, unknown names and unsupported types."""
    archive = Archive(path)
    return _with_arrays(archive, archive.tree, None, bits)


def join(name, key):
    """The name of an item of a dict or list; `name` is None for the outermost one."""
    return str(key) if name is None else f"{name}.{key}"


def _with_arrays(archive, value, name, bits):
    if isinstance(value, dict):
        return {key: _with_arrays(archive, item, join(name, key), bits) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_with_arrays(archive, item, join(name, at), bits) for at, item in enumerate(value))
    if not isinstance(value, StoredTensor):
        return value
    array = archive.array(archive.plan("data" if name is None else name, value))
    if value.dtype == "torch.bool":
        return array.astype(bool)
    return from_bits(array.reshape(-1), "BF16").reshape(array.shape) if value.dtype == "torch.bfloat16" and not bits else array


class Archive:
    """An open .pt file. `tree` is the saved object, with a StoredTensor in place of each tensor."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        try:
            self._entries = self._directory()
            self._bytes = numpy.memmap(self.path, "u1", "r").view(numpy.ndarray)
        except OSError as error:
            raise self.error(f"cannot be read: {error.strerror or error}") from error
        self._prefix = self._find_prefix()
        self._left = max(LARGEST_TENSORS, len(self._bytes))  # bytes that tensors may still take
        self._read = {}  # entries whose checksum was compared
        self.tree = self._load()

    def error(self, what):
        return TorchFileError(f"{self.path}: {what}")

    def plan(self, name, tensor):
        """Checks a tensor of the tree before any of its bytes is read; `name` is for messages."""
        if tensor.dtype not in KINDS:
            known = ", ".join(kind.split(".")[1] for kind in KINDS)
            raise self.error(f"tensor {name!r}: type {tensor.dtype}: expected one of {known}: convert it before it is saved")
        if tensor.flags:
            raise self.error(f"tensor {name!r}: a conjugated or negated view: save tensor.resolve_conj().resolve_neg()")
        numbers = (tensor.offset, *tensor.shape, *tensor.strides)
        plausible = all(type(number) is int and 0 <= number < 1 << 63 for number in numbers)
        if not plausible or len(tensor.shape) != len(tensor.strides) or len(tensor.shape) > MOST_DIMENSIONS:
            raise self.error(f"tensor {name!r}: impossible layout: expected one size and one stride of 0 or more for each of at "
                             f"most {MOST_DIMENSIONS} dimensions: save the file again")  # fmt: skip
        item = numpy.dtype(KINDS[tensor.dtype][0]).itemsize
        self._left -= math.prod(max(size, 1) for size in tensor.shape) * item
        if self._left < 0:
            raise self.error(f"tensor {name!r}, shape {list(tensor.shape)}: the tensors of the file take more than "
                             f"{max(LARGEST_TENSORS, len(self._bytes))} bytes: save them before they are expanded")  # fmt: skip
        if all(tensor.shape):
            self._check_extent(name, tensor, item)
        # The stride of a dimension with one element may be any number, and numpy would multiply it.
        strides = tuple(stride * item if size > 1 else 0 for size, stride in zip(tensor.shape, tensor.strides))
        return Plan(tensor.dtype, tensor.storage.key, tensor.offset * item, tensor.shape, strides)

    def array(self, plan):
        """Reads a tensor into a contiguous array; bf16 and bool as their bits."""
        if not all(plan.shape):
            return numpy.zeros(plan.shape, plan.kind)
        view = numpy.ndarray(plan.shape, plan.kind, self._entry(f"data/{plan.key}"), plan.offset, plan.strides)
        return numpy.ascontiguousarray(view).reshape(plan.shape)

    def _check_extent(self, name, tensor, item):
        storage, found = tensor.storage, self._info(f"data/{tensor.storage.key}").file_size
        wanted = storage.numel * (1 if storage.dtype is None else item)
        if wanted > found:
            raise self.error(f"tensor {name!r}: storage {storage.key!r}: expected {wanted} bytes, found {found}: save it again")
        end = (tensor.offset + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides)) + 1) * item
        if end > wanted:
            raise self.error(f"tensor {name!r}: reaches byte {end} of storage {storage.key!r}, which has {wanted}: save it again")

    def _directory(self):
        """Reads the central directory of the zip archive: the entries by name."""
        with open(self.path, "rb") as file:
            begin = file.read(len(LEGACY))
            if begin == LEGACY:
                raise self.error("written in the format of torch before 1.6: load it with torch and save it again "
                                 "without _use_new_zipfile_serialization=False")  # fmt: skip
            if begin[:2] != b"PK":
                raise self.error("not a torch.save file: expected a zip archive: save the tensor with torch.save")
            try:
                return zipfile.ZipFile(file).NameToInfo
            except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
                raise self.error(f"the zip archive is damaged or cut off ({error}): save the file again") from error

    def _find_prefix(self):
        """The folder inside the archive; torch.save gives it the name of the file."""
        found = [name.split("/")[0] for name in self._entries if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(found) != 1:
            raise self.error(f"not a torch.save file: expected one entry data.pkl, found {len(found)}: save it again")
        if f"{found[0]}/constants.pkl" in self._entries or any(name.startswith(f"{found[0]}/code/") for name in self._entries):
            raise self.error("a TorchScript archive: save the tensors themselves with torch.save")
        return found[0]

    def _load(self):
        if f"{self._prefix}/byteorder" in self._entries:
            order = self._entry("byteorder").tobytes()
            if order != b"little":
                raise self.error(f"byte order {order[:16]!r}: expected 'little': save it on a little-endian machine")
        if self._info("data.pkl").file_size > LARGEST_PICKLE:
            raise self.error(f"data.pkl has more than {LARGEST_PICKLE} bytes: save tensors, not lists of numbers")
        try:
            tree = Machine(self).load(self._entry("data.pkl").tobytes())
        except TorchFileError:
            raise
        except (ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
            raise self.error(f"data.pkl is damaged ({type(error).__name__}: {error}): save the file again") from error
        self._check_tree(tree)
        return tree

    def _info(self, name):
        info = self._entries.get(f"{self._prefix}/{name}")
        if info is None:
            raise self.error(f"has no entry {name}: save the file again")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.compress_size != info.file_size:
            raise self.error(f"entry {name} is compressed or encrypted, which torch.save never does: save the file again")
        return info

    def _entry(self, name):
        """The bytes of an entry: a view of the file."""
        if name in self._read:
            return self._read[name]
        info = self._info(name)
        local = self._bytes[info.header_offset : info.header_offset + 30].tobytes()
        if len(local) < 30 or local[:4] != b"PK\x03\x04":
            raise self.error(f"entry {name}: its header is not where the archive says: the file is damaged: save it again")
        begin = info.header_offset + 30 + sum(struct.unpack("<HH", local[26:]))
        data = self._bytes[begin : begin + info.file_size]
        if len(data) != info.file_size:
            raise self.error(f"entry {name}: expected {info.file_size} bytes, found {len(data)}: it is cut off: save it again")
        if info.CRC and zlib.crc32(data) != info.CRC:  # 0: written under torch.serialization.set_crc32_options(False)
            raise self.error(f"entry {name}: the checksum does not match its bytes: the file is damaged: save it again")
        self._read[name] = data
        return data

    def _check_tree(self, tree):
        """Refuses a tree with objects that are no values, and a tree without end: a list may contain itself."""
        left, waiting = MOST_VALUES, [(tree, 0)]
        while waiting:
            value, depth = waiting.pop()
            if isinstance(value, (Global, Storage)):
                name = value.name.replace(" ", ".") if isinstance(value, Global) else "a storage without a tensor"
                raise self.error(f"holds {name}: save plain tensors, numbers and texts")
            if not isinstance(value, (dict, list, tuple)):
                continue
            if isinstance(value, dict) and not all(isinstance(key, (str, int)) for key in value):
                raise self.error("a dict has keys that are neither texts nor integers: save it with text keys")
            left -= len(value)
            if depth >= DEEPEST or left < 0:
                raise self.error(f"holds more than {MOST_VALUES} values, lists in lists deeper than {DEEPEST}, or a list that "
                                 "holds itself: save plain tensors")  # fmt: skip
            waiting += [(item, depth + 1) for item in (value.values() if isinstance(value, dict) else value)]


class Machine:
    """Interprets a pickle. The stack holds plain values, StoredTensors and names, so there is nothing to call."""

    def __init__(self, archive):
        self.archive = archive
        self.stack, self.marks, self.memo = [], [], {}

    def load(self, data):
        for opcode, argument, _ in pickletools.genops(data):
            step = STEPS.get(opcode.name)
            if step is None:
                raise self.archive.error(f"data.pkl has the instruction {opcode.name}, which tensors do not need: save plain "
                                         "tensors, numbers and texts")  # fmt: skip
            step(self, argument)
        return self.stack.pop()

    def push(self, value):
        self.stack.append(value)

    def number(self, value):
        if not -(1 << 63) <= value < 1 << 64:
            raise ValueError("an integer of more than 64 bits")
        self.push(value)

    def text(self, value):
        value.encode()  # refuses halves of surrogate pairs
        self.push(value)

    def name(self, name):
        """Pushes a name if it is listed. `name` is the module, a space, and the name inside the module."""
        if name not in REBUILD and name not in STORAGES and name not in DTYPES and name not in TENSOR_CLASSES:
            raise self.archive.error(f"needs {name.replace(' ', '.')[:200]!r}, which is not on the fixed list of names: save plain "
                                     "tensors, numbers and texts, as in torch.save(tensor.detach().cpu(), path)")  # fmt: skip
        self.push(DTYPES.get(name) or Global(name))

    def stack_name(self, _):
        name, module = self.stack.pop(), self.stack.pop()
        self.name(" ".join((module, name)))

    def since_mark(self):
        begin = self.marks.pop()
        items = self.stack[begin:]
        del self.stack[begin:]
        return items

    def tuple_of(self, count):
        if count > len(self.stack):
            raise ValueError("too few values")
        items = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        self.push(items)

    def set_items(self, items):
        for key, value in zip(items[::2], items[1::2]):
            self.stack[-1][key] = value

    def set_item(self, _):
        value, key = self.stack.pop(), self.stack.pop()
        self.set_items((key, value))

    def append(self, _):
        value = self.stack.pop()
        self.stack[-1].append(value)

    def storage(self, _):
        kind, storage_type, key, _, numel = self.stack.pop()
        if kind != "storage" or type(key) is not str or type(numel) is not int or numel < 0:
            raise ValueError("no storage")
        self.push(Storage(STORAGES[storage_type.name], key, numel))

    def reduce(self, _):
        arguments = self.stack.pop()
        self.push(_rebuilt(self.stack.pop(), arguments))

    def build(self, _):
        """Drops Python attributes, such as `_metadata` of a state dict."""
        self.stack.pop()
        if not isinstance(self.stack[-1], dict):
            raise ValueError("attributes of an object that is no dict")


STEPS = {
    "PROTO": lambda machine, version: None,
    "FRAME": lambda machine, size: None,
    "STOP": lambda machine, _: None,
    "NONE": Machine.push,
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "BININT": Machine.number,
    "BININT1": Machine.number,
    "BININT2": Machine.number,
    "LONG1": Machine.number,
    "BINFLOAT": Machine.push,
    "BINUNICODE": Machine.text,
    "SHORT_BINUNICODE": Machine.text,
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "APPEND": Machine.append,
    "APPENDS": lambda machine, _: (lambda items: machine.stack[-1].extend(items))(machine.since_mark()),
    "SETITEM": Machine.set_item,
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    "BINPUT": lambda machine, at: machine.memo.__setitem__(at, machine.stack[-1]),
    "LONG_BINPUT": lambda machine, at: machine.memo.__setitem__(at, machine.stack[-1]),
    "MEMOIZE": lambda machine, _: machine.memo.__setitem__(len(machine.memo), machine.stack[-1]),
    "BINGET": lambda machine, at: machine.push(machine.memo[at]),
    "LONG_BINGET": lambda machine, at: machine.push(machine.memo[at]),
    "GLOBAL": Machine.name,
    "STACK_GLOBAL": Machine.stack_name,
    "BINPERSID": Machine.storage,
    "REDUCE": Machine.reduce,
    "BUILD": Machine.build,
}


def _rebuilt(what, arguments):
    """The result of a listed function; never of a function of the file."""
    if not isinstance(what, Global) or type(arguments) is not tuple:
        raise ValueError("a call without a function or arguments")
    return REBUILD[what.name](*arguments)


def _tensor(storage, offset, shape, strides, requires_grad, hooks, flags=None):
    return _stored(storage, storage.dtype, offset, shape, strides, flags)


def _tensor_of_type(storage, offset, shape, strides, requires_grad, hooks, dtype, flags=None):
    return _stored(storage, dtype, offset, shape, strides, flags)


def _stored(storage, dtype, offset, shape, strides, flags):
    if not isinstance(storage, Storage) or type(dtype) is not str or type(shape) is not tuple or type(strides) is not tuple:
        raise ValueError("no tensor")
    return StoredTensor(dtype, storage, offset, shape, strides, flags)


def _size(sizes):
    if len(sizes) > MOST_DIMENSIONS:  # else a few bytes of a pickle copy a long list again and again
        raise ValueError("too many dimensions")
    return tuple(sizes)


def _device(kind, index=None):
    if type(kind) is not str or type(index) not in (int, type(None)):
        raise ValueError("no device")
    return kind if index is None else f"{kind}:{index}"


# Our own versions of the functions that torch.save names, by module and name.
REBUILD = {
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_tensor_v3": _tensor_of_type,
    "torch._utils _rebuild_parameter": lambda data, requires_grad, hooks: data,
    "torch._utils _rebuild_parameter_with_state": lambda data, requires_grad, hooks, state: data,
    "torch._tensor _rebuild_from_type_v2": lambda function, kind, arguments, state: _rebuilt(function, arguments),
    "torch Size": _size,
    "torch device": _device,
    "collections OrderedDict": lambda: {},
}
