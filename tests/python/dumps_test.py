# SPDX-License-Identifier: MIT
"""moe_diag.Recorder writes dumps that numpy and open_dump read, and both refuse what is wrong."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import types
import unittest
from unittest import mock

import numpy
from moe_diag import DumpError, RecordError, Recorder, from_bits, open_dump, save_safetensors, to_bits
from moe_diag.recorder import ALL_STAGES, INDEX_STAGES, MODEL_STAGES

RANDOM = numpy.random.default_rng(7)
PROMPT, DECODE = [5, 6, 7, 8], [9]


def values(rows, *row):
    return RANDOM.standard_normal((rows, *row)).astype(numpy.float32)


class FakeTensor:
    """What the recorder uses of a torch tensor in bfloat16."""

    dtype = "torch.bfloat16"

    def __init__(self, bits, as_type=None):
        self._bits, self._type = bits, as_type

    def detach(self):
        return self

    contiguous = cpu = detach

    def view(self, as_type):
        return FakeTensor(self._bits, as_type)

    def numpy(self):
        if self._type != "int16":
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self._bits.view("<i2")


class Folder(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name)
        self.path = self.folder / "dump"

    def refused(self, words, kind=RecordError):
        return self.assertRaisesRegex(kind, re.escape(words))

    def small(self, **options):
        """A dump of two calls and two layers; what was given, by call."""
        given = []
        with Recorder(self.path, engine="test 1", **options) as recorder:
            for tokens in (PROMPT, DECODE):
                n = len(tokens)
                arrays = {("embedding", None): values(n, 8), ("lm_head", None): values(n, 11)}
                for layer in (0, 1):
                    arrays["moe_ffn_out", layer] = values(n, 8)
                    arrays["q_norm", layer] = values(n, 2, 4)
                    arrays["moe_router_indices", layer] = RANDOM.integers(0, 12, (n, 3)).astype(numpy.int32)
                with recorder.call(tokens=tokens, mode="eager") as call:
                    for (stage, layer), array in arrays.items():
                        call(stage, layer, array)
                given.append(arrays)
        return given


class Written(Folder):
    def test_two_calls(self):
        given = self.small(numerics="f32", stored="f32")
        dump = open_dump(self.path)
        self.assertEqual(
            json.loads((self.path / "dump.json").read_text()),
            {"format": "moe-diag dump", "version": 1, "engine": "test 1", "numerics": "f32", "stored": "f32", "closed": True, "calls": 2},
        )
        lines = [json.loads(line) for line in (self.path / "calls.jsonl").read_text().splitlines()]
        self.assertEqual(lines[1], {"request": "0", "first": 4, "rows": 1, "tokens": [9], "mode": "eager"})
        self.assertEqual(set(dump), set(given[0]))
        for (stage, layer), first in given[0].items():
            whole = numpy.concatenate([first, given[1][stage, layer]])
            name = f"{stage}.npy" if layer is None else f"layer_{layer:02}/{stage}.npy"
            loaded = numpy.load(self.path / name)
            self.assertEqual((loaded.dtype, loaded.tobytes()), (whole.dtype, whole.tobytes()))
            self.assertEqual((self.path / name).stat().st_size, 128 + whole.nbytes)
            self.assertTrue((dump[stage, layer] == whole).all())
            self.assertTrue((dump.rows(stage, layer, call=1) == given[1][stage, layer]).all())
        self.assertEqual((dump.layers, dump.stages[:2]), ([0, 1], ["embedding", "q_norm"]))
        self.assertEqual((dump.calls[1].positions, dump.calls[1].tokens, dump.calls[1].mode), ((4,), (9,), "eager"))
        self.assertEqual(sorted(self.path.rglob("*.part")), [])

    def test_types(self):
        x = values(4, 8)
        x[0, :4] = [1 + 2**-8, 1 + 3 * 2**-8, numpy.nan, numpy.inf]  # two ties, to even
        bits = to_bits(x, "BF16")
        forms = {"attn_norm": (x, "bf16"), "attn_out": (bits, "bf16"), "attention": (bits.view("V2"), None),
                 "ffn_norm": (FakeTensor(bits), None)}  # fmt: skip
        try:
            import ml_dtypes

            forms["moe_ffn_out"] = (x.astype(ml_dtypes.bfloat16), None)
        except ImportError:
            pass
        plain = {"moe_router_logits": x.astype("f2"), "moe_router_probs": x.astype("f8"), "moe_router_weights": x.astype(">f4"),
                 "moe_expert_out": values(8, 3, 4)[::2, :, ::2]}  # fmt: skip
        fake = types.ModuleType("torch")
        fake.int16 = "int16"
        with mock.patch.dict(sys.modules, {"torch": fake}), Recorder(self.path, engine="t") as recorder:
            with recorder.call(rows=4) as call:
                for stage, (array, dtype) in forms.items():
                    call(stage, 0, array, dtype=dtype)
                for stage, array in plain.items():
                    call(stage, 0, array)
        dump = open_dump(self.path)
        self.assertEqual(dump["attn_norm", 0][0, 0:2].tolist(), [1.0, 1 + 2**-6])
        for stage in forms:
            self.assertEqual(dump.bits(stage, 0).tobytes(), bits.tobytes(), stage)
            self.assertIn(b"'|V2'", (self.path / f"layer_00/{stage}.npy").read_bytes()[:128])
            self.assertTrue(numpy.array_equal(dump[stage, 0], from_bits(bits, "BF16"), equal_nan=True))
        for stage, array in plain.items():
            self.assertTrue(numpy.array_equal(dump[stage, 0], array, equal_nan=True))
            self.assertEqual(dump[stage, 0].dtype.byteorder, "=")
        self.assertIsNone(dump.calls[0].tokens)

    def test_filters(self):
        given = self.small(layers="0..1", stages=["moe_*", "layer_output", "lm_head"], last=2, calls=[0])
        dump = open_dump(self.path)
        self.assertEqual(set(dump), {("lm_head", None), ("moe_ffn_out", 0), ("moe_router_indices", 0)})
        self.assertTrue((dump["moe_ffn_out", 0] == given[0]["moe_ffn_out", 0][-2:]).all())
        self.assertEqual([call.recorded for call in dump.calls], [{"lm_head": 2, "moe_ffn_out": 2, "moe_router_indices": 2}, 0])
        self.assertEqual(dump.rows("moe_ffn_out", 0, call=1).shape, (0, 8))
        for option, words in (
            ({"stages": "moe_fn_out"}, "no stage 'moe_fn_out', did you mean 'moe_ffn_out'?"),
            ({"stages": "mo_*"}, "'mo_*' fits no stage"), ({"stages": []}, "stages: is empty"),
            ({"layers": "a..b"}, 'layers: expected numbers, "0..4"'), ({"calls": [-1]}, "calls: expected numbers from 0 on"),
            ({"last": -1}, "last: expected an integer from 0 on, found -1"), ({"engine": ""}, "engine: expected a name"),
        ):  # fmt: skip
            with self.refused(words):
                Recorder(self.folder / "other", **{"engine": "t", **option})
        self.assertFalse((self.folder / "other").exists())

    def test_calls_that_differ(self):
        """Late stages, last rows, batches, padding and positions of one's own."""
        with Recorder(self.path, engine="t", last=None) as recorder:
            with recorder.call(tokens=PROMPT) as call:
                call("final_norm", values(4, 8))
            with recorder.call(parts=[{"request": "a", "first": 3, "rows": 2}, {"request": "0", "tokens": [1, 2]}], padding=1) as call:
                call("final_norm", values(4, 8))
                call("lm_head", values(1, 11), last=1)
            with recorder.call(positions=[9, 7], kernel="small", rank=1, graph_size=8) as call:
                call("lm_head", values(2, 11))
        dump = open_dump(self.path)
        self.assertEqual([call.recorded for call in dump.calls], [{"lm_head": 0}, {"lm_head": 1}, {"final_norm": 0}])
        self.assertEqual(dump.calls[1].positions, (3, 4, 4, 5))
        self.assertEqual(dump.calls[1].requests, ("a", "a", "0", "0"))
        self.assertEqual((dump.calls[1].padding, dump.calls[2].positions, dump.calls[2].line["rank"]), (1, (9, 7), 1))
        self.assertEqual(dump["lm_head", None].shape, (3, 11))

    def test_positions_go_on_behind_padding(self):
        with Recorder(self.path, engine="t") as recorder:
            for tokens, padding in ((PROMPT, 1), ([1, 2], 0), ([3], 0)):
                with recorder.call(tokens=tokens, padding=padding) as call:
                    call("final_norm", values(len(tokens), 8))
        self.assertEqual([call.positions for call in open_dump(self.path).calls], [(0, 1, 2, 3), (3, 4), (5,)])
        lines = [json.loads(line) for line in (self.path / "calls.jsonl").read_text().splitlines()]
        for line in lines:
            line.pop("first")  # which is then behind the last call of the request
        (self.path / "calls.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        self.assertEqual([call.positions for call in open_dump(self.path).calls], [(0, 1, 2, 3), (3, 4), (5,)])

    def test_an_exception_discards_its_call(self):
        with Recorder(self.path, engine="t") as recorder:
            for tokens in (PROMPT, [1, 2], DECODE):
                try:
                    with recorder.call(tokens=tokens) as call:
                        call("moe_ffn_out", 0, values(len(tokens), 8))
                        if len(tokens) == 2:
                            call("lm_head", values(2, 11))  # new, and gone
                            raise ArithmeticError("the engine")
                except ArithmeticError:
                    pass
        dump = open_dump(self.path)
        self.assertEqual((len(dump.calls), list(dump), dump["moe_ffn_out", 0].shape), (2, [("moe_ffn_out", 0)], (5, 8)))
        self.assertEqual(dump.calls[1].positions, (4,))

    def test_stages_are_those_of_the_tool(self):
        known, indices, of_model = set(), set(), set()
        for architecture in ("qwen3moe", "qwen2moe"):
            run = subprocess.run([os.environ["MOE_DIAG_EXE"], "stages", architecture, "--json"], capture_output=True, check=True)
            for stage in json.loads(run.stdout)["stages"]:
                known.add(stage["name"])
                (indices if stage["payload"] == "indices" else set()).add(stage["name"])
                (of_model if stage["scope"] == "model" else set()).add(stage["name"])
        self.assertEqual((set(ALL_STAGES), set(INDEX_STAGES), set(MODEL_STAGES)), (known, indices, of_model))


class Refused(Folder):
    def test_arrays(self):
        ids = numpy.zeros((4, 3), numpy.int32)
        wrong = ids.copy()
        wrong[2, 1] = -7
        cases = [
            (("moe_fn_out", 0, values(4, 8)), {}, "no stage 'moe_fn_out', did you mean 'moe_ffn_out'?"),
            (("moe_ffn_out", 0, values(3, 8)), {}, "call 1: moe_ffn_out of layer 0: expected 4 rows, as the call has, found 3, of "
             "shape [3, 8]: rows come first; last=3 where"),
            (("moe_ffn_out", 0, values(4, 8)), {"last": 5}, "last=5: the call has 4 rows"),
            (("moe_ffn_out", 0, values(4, 4, 2)), {}, "expected rows of shape [8], as in calls before, found [4, 2]"),
            (("moe_ffn_out", 0, values(4, 8).astype("f8")), {}, "expected float32, as in calls before, found float64"),
            (("moe_ffn_out", 0, values(4, 8)), {"dtype": "bf16"}, "expected float32, as in calls before, found bf16"),
            (("moe_ffn_out", 0, values(4, 8)), {"dtype": "fp8"}, 'dtype: expected "bf16"'),
            (("attn_norm", 0, values(4, 8).astype("f8")), {"dtype": "bf16"}, "rounding twice"),
            (("attn_norm", 0, ids), {}, "expected values in f32, f64, f16 or bf16, found int32"),
            (("attn_norm", 0, ids.astype("u2")), {}, 'dtype="bf16" takes uint16 as bits'),
            (("attn_norm", 0, numpy.float32(1)), {}, "expected an array [rows, ...], found shape []"),
            (("attn_norm", 0, None), {}, "expected an array, found None"),
            (("attn_norm", values(4, 8)), {}, "is a stage of a layer"),
            (("attn_norm", -1, values(4, 8)), {}, "expected a number of a layer, 0 to 9999, found -1"),
            (("lm_head", 0, values(4, 8)), {}, "is a stage of the whole model"),
            (("moe_router_indices", 0, values(4, 3)), {}, "expected ids of experts in int8 to int64"),
            (("moe_router_indices", 0, ids[:, 0]), {}, "expected shape [rows, experts a token], found [4]"),
            (("moe_router_indices", 0, wrong), {}, "row 2, slot 1: expected the id of an expert, 0 to 65535, found -7; 1 of 12"),
        ]  # fmt: skip
        with Recorder(self.path, engine="t") as recorder:
            with recorder.call(tokens=PROMPT) as call:
                call("moe_ffn_out", 0, values(4, 8))
            for arguments, options, words in cases:
                with self.refused(words), recorder.call(tokens=PROMPT) as call:
                    call(*arguments, **options)
            with self.refused("is there already"), recorder.call(tokens=PROMPT) as call:
                call("moe_ffn_out", 0, values(4, 8))
                call("moe_ffn_out", 0, values(4, 8))
            with self.refused("moe_ffn_out: layer 1 is new"), recorder.call(tokens=PROMPT) as call:
                call("moe_ffn_out", 0, values(4, 8))
                call("moe_ffn_out", 1, values(4, 8))
            with recorder.call(tokens=PROMPT) as call:
                call("moe_ffn_out", 0, values(4, 8))
                call("attn_out", 0, values(4, 8))
                call("attn_out", 1, values(4, 8))
            with self.refused("attn_out: layer 1 is missing, which calls before had"), recorder.call(tokens=PROMPT) as call:
                call("attn_out", 0, values(4, 8))
            with self.refused("attn_out: layer 1 has 1 rows, others have 4"), recorder.call(tokens=PROMPT) as call:
                call("attn_out", 0, values(4, 8))
                call("attn_out", 1, values(1, 8), last=1)
            with self.refused("the call is over"):
                call("attn_out", 0, values(4, 8))
        dump = open_dump(self.path)
        self.assertEqual((len(dump.calls), dump["moe_ffn_out", 0].shape, dump["attn_out", 1].shape), (2, (8, 8), (4, 8)))

    def test_calls(self):
        recorder = Recorder(self.path, engine="t")
        for options, words in (
            ({}, "call 0: the number of rows is not known: give tokens, or rows="),
            ({"tokens": [1, 2], "rows": 3}, "expected as many of each, found 3 rows, 2 tokens"),
            ({"tokens": [1, 2], "positions": [1]}, "expected as many of each, found 2 tokens, 1 positions"),
            ({"tokens": [1, -2]}, "call 0: tokens: expected an integer from 0 on, found -2"),
            ({"tokens": [1.5]}, "tokens: expected an integer from 0 on, found 1.5"),
            ({"tokens": [1], "first": -1}, "first: expected an integer"),
            ({"positions": [1], "first": 1}, "expected first or positions, found both"),
            ({"tokens": []}, "has no rows"),
            ({"parts": [], "rows": 1}, "parts: expected one request or more"),
            ({"tokens": [1], "padding": 1}, "padding 1: the call has 1 rows"),
            ({"tokens": [1], "kernl": "x"}, "no fact 'kernl', did you mean 'kernel'?"),
        ):
            with self.refused(words):
                recorder.call(**options)
        with recorder.call(tokens=[1]):
            with self.refused("call 0 is not finished: one call at a time"):
                recorder.call(tokens=[1])
            with self.refused("is not finished: close the recorder behind it"):
                recorder.close()
        recorder.close()
        with self.refused("closed"):
            recorder.call(tokens=[1])
        with self.refused("exists: a dump is written into a new folder"):
            Recorder(self.path, engine="t")

    def test_cut(self):
        with self.assertRaises(ArithmeticError), Recorder(self.path, engine="t") as recorder:
            for tokens in (PROMPT, DECODE, [3, 4]):
                with recorder.call(tokens=tokens) as call:
                    call("moe_ffn_out", 0, values(len(tokens), 8))
                    call("moe_router_indices", 0, numpy.zeros((len(tokens), 3), numpy.int16))
            raise ArithmeticError("the engine died")
        with self.refused("was cut: dump.json does not say that it was closed", DumpError):
            open_dump(self.path)
        dump = open_dump(self.path, cut_ok=True)
        self.assertEqual((dump.complete, len(dump.calls), dump["moe_ffn_out", 0].shape), (False, 3, (7, 8)))
        calls, part = self.path / "calls.jsonl", self.path / "layer_00/moe_ffn_out.npy.part"
        whole = part.read_bytes()
        part.write_bytes(whole[:-1])  # the last row is not there
        self.assertEqual([len(c.positions) for c in open_dump(self.path, cut_ok=True).calls], [4, 1])
        part.write_bytes(whole)
        calls.write_text(calls.read_text()[:-1])  # nor is the end of its line
        dump = open_dump(self.path, cut_ok=True)
        self.assertEqual((len(dump.calls), dump["moe_ffn_out", 0].shape, dump["moe_router_indices", 0].shape), (2, (5, 8), (5, 3)))

    def test_damage(self):
        self.small()
        for name, change, words in (
            ("dump.json", lambda t: b"{", "cannot be read"),
            ("dump.json", lambda t: t.replace(b"moe-diag dump", b"x"), "is no dump: expected the format"),
            ("dump.json", lambda t: t.replace(b'"version": 1', b'"version": 9'), "expected version 1, found 9"),
            ("dump.json", lambda t: t.replace(b'"calls": 2', b'"calls": 3'), "expected 3 calls, as dump.json says, found 2"),
            ("calls.jsonl", lambda t: t[:-1], "the last line has no end"),
            ("calls.jsonl", lambda t: t[:40] + b"\n", "calls.jsonl:1: is no call"),
            ("calls.jsonl", lambda t: t.replace(b"[9]", b"[9, 9]"), "calls.jsonl:2: is no call: expected 1 tokens, found 2"),
            ("calls.jsonl", lambda t: t.replace(b'"rows": 4', b'"rows": 3').replace(b", 8]", b"]"), "expected 4 rows, as calls.jsonl says, found 5"),
            ("lm_head.npy", lambda t: t[:-1], "it was cut, or written over"),
            ("lm_head.npy", lambda t: b"x" + t[1:], "is no npy file"),
            ("lm_head.npy", lambda t: t.replace(b"'<f4'", b"'>f4'"), "little-endian, found '>f4'"),
            ("lm_head.npy", lambda t: t.replace(b"False", b"True "), "Fortran order"),
        ):  # fmt: skip
            copy = pathlib.Path(tempfile.mkdtemp(dir=self.folder)) / "dump"
            shutil.copytree(self.path, copy)
            (copy / name).write_bytes(change((copy / name).read_bytes()))
            with self.subTest(words), self.refused(words, DumpError):
                open_dump(copy)
        for name, words in (("calls.jsonl", "has no calls.jsonl"), ("dump.json", "it has no dump.json")):
            (self.path / name).rename(self.folder / name)
            with self.refused(words, DumpError):
                open_dump(self.path)
            (self.folder / name).rename(self.path / name)
        dump = open_dump(self.path)
        for key, words in ((("moe_ffn_ou", 0), "did you mean 'moe_ffn_out'?"), (("moe_ffn_out", 5), "its layers are 0, 1")):
            with self.refused(words, KeyError):
                dump[key]
        (self.path / "lm_head.npy").rename(self.path / "lm_head.npy.part")
        with self.refused("is not complete, though", DumpError):
            open_dump(self.path)


class Safetensors(Folder):
    def test_a_file_for_each_call(self):
        given = self.small()
        other = self.folder / "other"
        other.mkdir()
        for name in ("dump.json", "calls.jsonl"):
            shutil.copy(self.path / name, other / name)
        for number, arrays in enumerate(given):
            if number:
                arrays["lm_head", None] = arrays["lm_head", None][-1:]
            names = {stage if layer is None else f"layer_{layer:02}/{stage}": array for (stage, layer), array in arrays.items()}
            save_safetensors(other / f"call_{number:05}.safetensors", names, {"layer_01/moe_ffn_out": "BF16"})
        dump = open_dump(other)
        for stage, layer in given[0]:
            for number in (0, 1):
                want = given[number][stage, layer]
                if (stage, layer) == ("moe_ffn_out", 1):
                    want = from_bits(to_bits(want, "BF16"), "BF16")
                self.assertTrue((dump.rows(stage, layer, call=number) == want).all())
        (other / "call_00001.safetensors").rename(other / "call_00002.safetensors")
        with self.refused("expected call_00001.safetensors", DumpError):
            open_dump(other)
        (other / "call_00002.safetensors").unlink()
        with self.refused("expected 2 files, as calls.jsonl says, found 1", DumpError):
            open_dump(other)


if __name__ == "__main__":
    unittest.main()
