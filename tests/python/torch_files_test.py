# SPDX-License-Identifier: MIT
"""moe_diag.read_torch and moe_diag.convert read the files of torch, and refuse damaged and hostile ones."""

import collections
import contextlib
import io
import json
import os
import pathlib
import random
import re
import shutil
import struct
import tempfile
import unittest
import zipfile
from unittest import mock

import numpy
from moe_diag import TorchFileError, convert, load_safetensors, read_torch, torch_files
from moe_diag.__main__ import main
from moe_diag.tensors import load_metadata

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden/torch"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())
ONES = numpy.ones(6, "<f4").tobytes()


class Raw(bytes):
    """Instructions of a pickle."""


def code(value):
    """The instructions that push a value."""
    if isinstance(value, Raw):
        return value
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        size = value.bit_length() // 8 + 1
        return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)
    if isinstance(value, str):
        text = value.encode("utf-8", "surrogatepass")
        return b"X" + struct.pack("<I", len(text)) + text
    if isinstance(value, tuple):
        return b"(" + b"".join(map(code, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(code, value)) + b"e"
    return b"}(" + b"".join(code(key) + code(item) for key, item in value.items()) + b"u"


def name(module, attribute):
    return Raw(f"c{module}\n{attribute}\n".encode())


def call(function, *arguments):
    return Raw(code(function) + code(arguments) + b"R")


def storage(kind="FloatStorage", key="0", numel=6, tag="storage"):
    return Raw(code((tag, name("torch", kind), key, "cpu", numel)) + b"Q")


def tensor(shape=(2, 3), strides=(3, 1), offset=0, flags=None, **of_storage):
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    more = () if flags is None else (flags,)
    return call(rebuild, storage(**of_storage), offset, shape, strides, False, call(name("collections", "OrderedDict")), *more)


class Folder(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name)
        self.file = self.folder / "a.pt"

    def pack(self, value, entries=None, compression=zipfile.ZIP_STORED):
        """Writes self.file as torch.save does: `value` goes into the pickle, and `entries` replaces or adds entries."""
        pickled = b"\x80\x02" + code(value) + b"."
        contents = {"data.pkl": pickled, "byteorder": b"little", "data/0": ONES, "version": b"3\n", **(entries or {})}
        with zipfile.ZipFile(self.file, "w", compression) as archive:
            for entry, data in contents.items():
                if data is not None:
                    archive.writestr(f"a/{entry}", data)
        return self.file

    def refused(self, words, path=None):
        """Neither reads it nor writes anything."""
        path = path or self.file
        for attempt in (read_torch, lambda path: convert(path, self.folder / "out")):
            with self.assertRaises(TorchFileError) as caught:
                attempt(path)
            self.assertIn(words, str(caught.exception))
            self.assertTrue(str(caught.exception).startswith(f"{path}: "), caught.exception)
        self.assertEqual([path for path in self.folder.rglob("*") if ".safetensors" in path.name], [])


class Golden(Folder):
    def test_converted(self):
        written = [path for file in EXPECTED for path in convert(GOLDEN / file, self.folder)]
        self.assertEqual([path.stem for path in written], [file.split(".")[0] for file in EXPECTED])
        for path, expected in zip(written, EXPECTED.values()):
            arrays = load_safetensors(path, bits=True)
            with open(path, "rb") as file:
                header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
            found = {name: [header[name]["dtype"], list(array.shape), array.tobytes().hex()] for name, array in arrays.items()}
            self.assertEqual(found, expected["tensors"])
            self.assertEqual({name: json.loads(text) for name, text in load_metadata(path).items()}, expected["metadata"])

    def test_read(self):
        saved = read_torch(GOLDEN / "dtypes.pt", bits=True)
        for name, array in saved.items():
            _, shape, data = EXPECTED["dtypes.pt"]["tensors"][name]
            wanted = {"bfloat16": "uint16"}.get(name, name)
            self.assertEqual((array.dtype.name, list(array.shape), array.tobytes().hex()), (wanted, shape, data))
        widened = read_torch(GOLDEN / "dtypes.pt")["bfloat16"]
        self.assertEqual((widened.dtype, widened.view("<u4").tolist()), ("<f4", (saved["bfloat16"].astype("<u4") << 16).tolist()))

    def test_views(self):
        saved = read_torch(GOLDEN / "views.pt")
        base = numpy.arange(24, dtype="<f4")
        table = base.reshape(4, 6)
        wanted = {"transposed": table.T, "sliced": table[1:3, 2:5], "stepped": base[1::5], "expanded": [[1, 2, 3]] * 4,
                  "row": table[3], "scalar": base[7], "scalar_bf16": -1.5, "scalar_bool": True, "empty": numpy.zeros((0, 4)),
                  "empty_slice": table[2:2], "one": table[1:2, 3:4],
                  "heads": table.reshape(4, 2, 3).transpose(1, 0, 2).transpose(0, 2, 1)}  # fmt: skip
        self.assertEqual(set(saved), set(wanted))
        for name, values in wanted.items():
            self.assertIsInstance(saved[name], numpy.ndarray)
            self.assertTrue(saved[name].flags.c_contiguous, name)
            numpy.testing.assert_array_equal(saved[name], values)
            self.assertEqual(saved[name].shape, numpy.shape(values))
        self.assertFalse(saved["row"].flags.owndata or saved["row"].flags.writeable)  # a view of the file

    def test_nested(self):
        for file in ("nested.pt", "protocol_4.pt"):
            saved = read_torch(GOLDEN / file)
            self.assertIsInstance(saved["layers"][0], tuple)
            self.assertEqual(saved["layers"][1][5].tolist(), [1, 2])
            self.assertEqual((saved["shape"], saved["dtype"], saved["device"]), ((2, 3), "torch.bfloat16", "cuda:1"))
            self.assertEqual((saved["text"], saved["big"], saved["none_in"][1]), ("gr\u00fc\u00df", 1 << 63, None))

    def test_refused(self):
        words = {"complex.pt": "tensor 'x': type torch.complex64: expected one of float64,",
                 "float8.pt": "tensor 'x': type torch.float8_e4m3fn: expected one of float64,",
                 "legacy.pt": "written in the format of torch before 1.6: load it with torch and save it again",
                 "negated.pt": "tensor 'x': a conjugated or negated view: save tensor.resolve_conj().resolve_neg()",
                 "numpy.pt": "needs 'numpy._core.multiarray.scalar', which is not on the fixed list"}  # fmt: skip
        self.assertEqual(sorted(path.name for path in (GOLDEN / "refused").iterdir()), sorted(words))
        for file, text in words.items():
            self.refused(text, GOLDEN / "refused" / file)


class Layouts(Folder):
    def test_packed(self):
        """The files made here are read as torch's are, so that what is refused below is refused for its one mistake."""
        self.pack({"x": tensor(), "y": tensor((2,), (2,), 1)})
        saved = read_torch(self.file)
        self.assertEqual((saved["x"].tolist(), saved["y"].tolist()), ([[1, 1, 1], [1, 1, 1]], [1, 1]))

    def test_out_of_bounds(self):
        reaches = {"offset": tensor(offset=1), "stride": tensor(strides=(4, 1)), "shape": tensor(shape=(3, 3)),
                   "far": tensor((2,), ((1 << 61),)), "wraps": tensor((5,), (1 << 62,)), "huge": tensor((1,), (1,), (1 << 62))}
        for value in reaches.values():
            self.pack({"x": value})
            self.refused("tensor 'x': reaches byte ")
        self.pack({"x": tensor(shape=(2, 4), strides=(4, 1), numel=8)})
        self.refused("tensor 'x': storage '0': expected 32 bytes, found 24")
        self.pack({"x": tensor()}, {"data/0": ONES[:-1]})
        self.refused("tensor 'x': storage '0': expected 24 bytes, found 23")
        self.pack({"x": tensor()}, {"data/0": None})
        self.refused("has no entry data/0")

    def test_impossible(self):
        many = (1,) * 33
        for value in (tensor((2, 3), (-3, 1)), tensor((-2, 3)), tensor(offset=-1), tensor((2, 3), (1,)), tensor((1 << 63, 1)),
                      tensor(many, many), tensor((2, "3")), tensor((2, None)), tensor((2, True))):  # fmt: skip
            self.pack({"x": value})
            self.refused("tensor 'x': impossible layout")
        for value in (tensor(shape=[2, 3]), tensor(shape=6), tensor(numel=-1), tensor(numel="6"), tensor(tag="module")):
            self.pack({"x": value})
            self.refused("data.pkl is damaged (ValueError: no ")

    def test_one_element(self):
        self.pack({"x": tensor((1, 3), ((1 << 63) - 1, 1)), "y": tensor((0, 3), ((1 << 63) - 1, 1), 99)})
        saved = read_torch(self.file)
        self.assertEqual((saved["x"].tolist(), saved["y"].shape), ([[1, 1, 1]], (0, 3)))

    def test_too_large(self):
        for shape in ((1 << 33,), (0, 1 << 62), (1 << 20,) * 32):
            self.pack({"x": tensor(shape, (0,) * len(shape))})
            self.refused(f"tensor 'x', shape {list(shape)}: the tensors of the file take more than 17179869184 bytes")
        self.pack({"x": tensor((1 << 10, 3), (0, 1)), "y": tensor((1 << 10, 3), (0, 1))})
        self.assertEqual(read_torch(self.file)["y"].sum(), 3 << 10)
        with mock.patch.object(torch_files, "LARGEST_TENSORS", 20 << 10):  # each is 12 KiB
            self.refused("tensor 'y', shape [1024, 3]: the tensors of the file take more than 20480 bytes")

    def test_unaligned(self):
        for shift in range(4):  # torch aligns storages, other zip tools do not
            self.pack({"x": tensor(key="1")}, {"byteorder": None, "data/0": b"x" * shift, "data/1": ONES})
            self.assertEqual(read_torch(self.file)["x"].sum(), 6)


class Pickles(Folder):
    def test_names(self):
        """No name is looked up: a file that names one runs nothing."""
        proof = self.folder / "proof"
        for module, attribute in (("os", "system"), ("posix", "system"), ("subprocess", "getoutput"), ("nt", "system")):
            self.pack(call(name(module, attribute), f"touch {proof}"))
            self.refused(f"needs '{module}.{attribute}', which is not on the fixed list of names: save plain tensors")
        for module, attribute in (("builtins", "eval"), ("builtins", "getattr"), ("torch", "load"), ("torch", ""),
                                  ("torch._utils", "_rebuild_sparse_tensor"), ("moe_diag.torch_files", "Archive"),
                                  ("collections", "OrderedDict.get"), ("numpy._core.multiarray", "_reconstruct")):  # fmt: skip
            self.pack({"x": name(module, attribute)})
            self.refused(f"needs '{module}.{attribute}', which is not")
        self.pack(Raw(code("os") + code("system") + b"\x93" + code((f"touch {proof}",)) + b"R"))  # as of protocol 4
        self.refused("needs 'os.system', which is not")
        self.assertFalse(proof.exists())

    def test_instructions(self):
        proof = f"touch {self.folder / 'proof'}"
        size = code(name("torch", "Size"))
        raw = {"INST": b"(" + code(proof) + b"ios\nsystem\n", "OBJ": b"(" + size + b"o", "NEWOBJ": size + b")\x81",
               "EXT1": b"\x82\x01", "PERSID": b"P0\n", "LONG": b"L5L\n", "UNICODE": b"Vx\n",
               "BINBYTES": b"B\x01\0\0\0x", "EMPTY_SET": b"\x8f", "BYTEARRAY8": b"\x96" + bytes(8), "POP": b"N0"}  # fmt: skip
        for instruction, instructions in raw.items():
            self.pack(Raw(instructions))
            self.refused(f"data.pkl has the instruction {instruction}, which tensors do not need")
        self.assertFalse((self.folder / "proof").exists())

    def test_damaged(self):
        size, rebuild = name("torch", "Size"), name("torch._tensor", "_rebuild_from_type_v2")
        raw = {"a state of a tensor": tensor() + code({"dtype": "x"}) + b"b", "a state of a name": code(size) + b"}b",
               "a call of a text": code("x") + b")R", "a call of a type": code(name("torch", "FloatStorage")) + b")R",
               "no arguments": code(size) + b"NR", "too many": call(size, (), ()), "no storage": code(("storage",)) + b"Q",
               "a storage of a size": code(("storage", size, "0", "cpu", 6)) + b"Q", "empty": b"", "one short": b"N\x86",
               "no list": b"NNa", "no dict": b"NNNs", "no mark": b"t", "no memo": b"h\x05", "a list as key": b"}]Ns",
               "long integer": code(1 << 64), "longer integer": code(1 << 2000), "half a character": code("\ud800"),
               "no size": call(size, tuple(range(99))), "pairs": call(name("collections", "OrderedDict"), [("x", 1)]),
               "no device": call(name("torch", "device"), []), "unknown instruction": b"\xff",
               "calls in calls": rebuild + (b"(" + rebuild + b"N") * 5000 + b")" + b"Nt" * 5000 + b"R"}  # fmt: skip
        for what, instructions in raw.items():
            with self.subTest(what):
                self.pack(Raw(instructions))
                self.refused("data.pkl is damaged (")
        whole = code({"x": tensor()})
        self.pack(None, {"data.pkl": b"\x80\x02" + whole})
        self.refused("data.pkl is damaged (ValueError: pickle exhausted before seeing STOP)")

    def test_nesting(self):
        laughs, deep, itself = [0] * 9, [], b"]q\x00h\x00a"
        for _ in range(40):
            laughs = Raw(code(laughs) + b"q\x01" + b"](" + b"h\x01" * 9 + b"e")
        for _ in range(101):
            deep = [deep]
        for value in (Raw(itself), laughs, deep, {"x": [[[], deep]]}):
            self.pack(value)
            with mock.patch.object(torch_files, "MOST_VALUES", 10_000):
                self.refused("holds more than 10000 values, lists in lists deeper than 100, or a list that holds itself")

    def test_values(self):
        for value, words in (
            ({"x": name("torch", "FloatStorage")}, "holds torch.FloatStorage: save plain"),
            ([storage()], "holds a storage without a tensor: save plain"),
            ({(1, 2): tensor()}, "a dict has keys that are neither texts nor integers"),
            ({None: 1}, "a dict has keys that are neither texts nor integers"),
            ({"x": tensor(kind="ComplexDoubleStorage", numel=1)}, "tensor 'x': type torch.complex128: expected one of float64"),
            ({"x": [1, {"y": tensor(flags={"conj": True})}]}, "tensor 'x.1.y': a conjugated or negated view"),
        ):
            self.pack(value)
            self.refused(words)

    def test_names_of_tensors(self):
        self.pack({"a.b": tensor(), "a": {"b": 1}})
        with self.assertRaisesRegex(TorchFileError, "two values get the name 'a.b', or safetensors reserves it"):
            convert(self.file)
        self.pack({"__metadata__": tensor()})
        with self.assertRaisesRegex(TorchFileError, "the name '__metadata__', or safetensors reserves it"):
            convert(self.file)
        self.assertEqual(list(self.folder.iterdir()), [self.file])

    def test_any_damage(self):
        """Whatever happens to a pickle, the file is read or refused."""
        chance = random.Random(5)
        with zipfile.ZipFile(GOLDEN / "protocol_4.pt") as archive:
            whole = archive.read("protocol_4/data.pkl")
        ends = collections.Counter()
        for _ in range(120):
            data = bytearray(whole)
            data[chance.randrange(len(data))] = chance.randrange(256)
            self.pack(None, {"data.pkl": bytes(data), **{f"data/{key}": bytes(64) for key in range(5)}})
            try:
                read_torch(self.file)
                ends["read"] += 1
            except TorchFileError:
                ends["refused"] += 1
        self.assertGreater(min(ends["read"], ends["refused"]), 10, ends)


class Archives(Folder):
    def test_cut(self):
        whole = (GOLDEN / "sglang.pt").read_bytes()
        for size in range(0, len(whole), 23):
            self.file.write_bytes(whole[:size])
            self.refused("")

    def test_flipped(self):
        """No flipped byte of a tensor goes unseen, and no flipped byte of anything else is more than a refusal."""
        whole = (GOLDEN / "sglang.pt").read_bytes()
        begin = whole.index(bytes.fromhex(EXPECTED["sglang.pt"]["tensors"]["value"][2]))
        value = read_torch(GOLDEN / "sglang.pt")["value"]
        for at in [*range(0, len(whole), 13), *range(begin, begin + value.size * 2)]:
            self.file.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
            try:
                self.assertTrue((read_torch(self.file)["value"] == value).all(), at)
            except TorchFileError:
                pass
        self.file.write_bytes(whole[:begin] + b"\xff" + whole[begin + 1 :])
        self.refused("entry data/0: the checksum does not match its bytes")

    def test_refused(self):
        saved = {"x": tensor()}
        self.file.write_bytes(b"\x93NUMPY")
        self.refused("not a torch.save file: expected a zip archive")
        self.file.write_bytes(b"")
        self.refused("not a torch.save file: expected a zip archive")
        self.pack(saved, compression=zipfile.ZIP_DEFLATED)
        self.refused("is compressed or encrypted, which torch.save never does")
        self.pack(saved, {"byteorder": b"big"})
        self.refused("byte order b'big': expected 'little'")
        self.pack(saved, {"code/__torch__.py": b""})
        self.refused("a TorchScript archive: save the tensors themselves with torch.save")
        self.pack(saved, {"constants.pkl": b""})
        self.refused("a TorchScript archive: save the tensors themselves with torch.save")
        self.pack(saved, {"data.pkl": None})
        self.refused("not a torch.save file: expected one entry data.pkl, found 0")
        with zipfile.ZipFile(self.pack(saved), "a") as archive:
            archive.writestr("b/data.pkl", b"")
        self.refused("not a torch.save file: expected one entry data.pkl, found 2")
        self.pack(saved)
        with mock.patch.object(torch_files, "LARGEST_PICKLE", 64):
            self.refused("data.pkl has more than 64 bytes")
        with mock.patch("builtins.open", side_effect=PermissionError(13, "Permission denied")):
            self.refused("cannot be read: Permission denied")

    def test_directory_lies(self):
        """The central directory says where an entry lies and how large it is."""
        whole = self.pack({"x": tensor()}).read_bytes()
        directory = whole.index(b"PK\x01\x02")
        entry = whole.index(b"a/data/0", directory) - 46
        end = whole.index(b"PK\x05\x06")
        changes = (
            (entry + 8, "<H", 1, "entry data/0 is compressed or encrypted"),  # flags: encrypted
            (entry + 10, "<H", 8, "entry data/0 is compressed or encrypted"),  # method: deflated
            (entry + 24, "<I", 48, "entry data/0 is compressed or encrypted"),  # size behind the same compressed size
            (entry + 20, "<Q", (1 << 20) * ((1 << 32) + 1), "entry data/0: expected 1048576 bytes, found "),  # both sizes
            (entry + 42, "<I", directory, "entry data/0: its header is not where the archive says"),
            (entry + 42, "<I", (1 << 32) - 2, "entry data/0: its header is not where the archive says"),
            (end + 16, "<I", directory + 99, "its header is not where the archive says"),  # offsets below 0
        )
        for at, kind, value, words in changes:
            data = bytearray(whole)
            struct.pack_into(kind, data, at, value)
            self.file.write_bytes(data)
            self.refused(words)


class Converted(Folder):
    def run_main(self, *arguments):
        """Exit code, and what is printed."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                return main([*map(str, arguments)]), out.getvalue(), err.getvalue()
            except SystemExit as end:
                return end.code, out.getvalue(), err.getvalue()

    def files(self, folder):
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())

    def dump(self):
        """A folder with three good files and a bad one between them."""
        dump = self.folder / "dump"
        (dump / "rank0").mkdir(parents=True)
        step = "step=0___rank=0___name=moe_out___layer_id=3"
        for source, target in (("sglang.pt", f"{step}.pt"), ("lone.pt", "rank0/Module.x.forward.0.output.0.pt"),
                               ("no_checksums.pth", "rank0/z.PTH"), ("refused/numpy.pt", "rank0/bad.pt")):  # fmt: skip
            shutil.copy(GOLDEN / source, dump / target)
        (dump / "notes.txt").write_text("not converted")
        return dump, ["rank0/Module.x.forward.0.output.0.safetensors", "rank0/z.safetensors", f"{step}.safetensors"]

    def test_folder(self):
        dump, names = self.dump()
        before, out = self.files(dump), self.folder / "new/out"
        code, printed, errors = self.run_main("convert", dump, "--out", out)
        self.assertEqual((code, printed), (1, "3 of 4 files converted, 1 refused\n"))
        self.assertRegex(errors, rf"^{re.escape(str(dump))}/rank0/bad.pt: needs 'numpy._core[^\n]*\n$")
        self.assertEqual((self.files(out), self.files(dump)), (names, before))
        self.assertEqual(load_safetensors(out / names[0], bits=True)["data"].tolist(), [[0x3F80, 0xC000]])
        (dump / "rank0/bad.pt").unlink()
        code, printed, errors = self.run_main("convert", dump)
        self.assertEqual((code, printed, errors), (0, "3 of 3 files converted, 0 refused\n", ""))
        self.assertEqual(self.files(dump), sorted(set(before) - {"rank0/bad.pt"} | set(names)))

    def test_python(self):
        dump, names = self.dump()
        with self.assertRaises(TorchFileError) as caught:
            convert(dump)
        self.assertEqual(sorted(caught.exception.written), [dump / name for name in names])
        self.assertEqual(len(caught.exception.refused), 1)
        self.assertEqual(convert(dump / "rank0/z.PTH", replace=True), [dump / "rank0/z.safetensors"])

    def test_exists(self):
        self.pack({"x": tensor()})
        target = self.folder / "a.safetensors"
        target.write_text("mine")
        code, printed, errors = self.run_main("convert", self.file)
        self.assertEqual((code, printed), (1, "0 of 1 files converted, 1 refused\n"))
        self.assertIn(f"{target} exists: remove it, or write over it with --replace", errors)
        self.assertEqual(target.read_text(), "mine")
        self.pack({"x": tensor()}, {"data/0": None})
        self.assertEqual(self.run_main("convert", self.file, "--replace")[0], 1)
        self.assertEqual(target.read_text(), "mine")
        self.pack({"x": tensor()})
        self.assertEqual(self.run_main("convert", self.file, "--replace")[0], 0)
        self.assertEqual(load_safetensors(target)["x"].sum(), 6)

    def test_same_name(self):
        shutil.copy(self.pack({"x": tensor()}), self.folder / "a.pth")
        code, _, errors = self.run_main("convert", self.folder, "--replace")
        self.assertEqual(code, 1)
        self.assertIn(f"a.pth: {self.folder / 'a.safetensors'} was just written from another file", errors)

    def test_half_written(self):
        """A damaged second tensor is seen when the first one is written: nothing stays behind."""
        self.pack({"x": tensor(), "y": tensor(key="1")}, {"data/1": ONES[::-1]})
        whole = self.file.read_bytes()
        self.file.write_bytes(whole.replace(ONES[::-1], ONES[:4] + ONES[4::-1] + ONES[9:]))
        with self.assertRaisesRegex(TorchFileError, "entry data/1: the checksum does not match"):
            convert(self.file)
        self.assertEqual(self.files(self.folder), ["a.pt"])

    def test_exit_codes(self):
        nowhere = self.folder / "nowhere"
        self.assertEqual(self.run_main("convert", nowhere)[::2], (2, f"{nowhere}: there is no such file or folder\n"))
        self.assertEqual(self.run_main("convert", self.folder)[::2], (2, f"{self.folder}: no .pt or .pth file in it or below\n"))
        self.assertEqual(self.run_main()[0], 2)
        self.assertEqual(self.run_main("convert", self.folder, "--no-such-option")[0], 2)
        self.pack({"x": tensor()})
        with mock.patch.object(os, "replace", side_effect=OSError(28, "No space left on device")):
            self.assertEqual(self.run_main("convert", self.file)[::2], (4, "[Errno 28] No space left on device\n"))
        self.assertEqual(self.files(self.folder), ["a.pt"])


if __name__ == "__main__":
    unittest.main()
