# SPDX-License-Identifier: MIT
"""moe_diag.check_kernel holds right kernels, of numpy, C and a stand-in for Triton, and names what is wrong with others."""

import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import types
import unittest
from unittest import mock

import moe_diag
import numpy as np
from moe_diag.kernel import find_program

ROOT = pathlib.Path(__file__).resolve().parents[2]
OWN_KERNEL = ROOT / "docs/examples/own_kernel"
ROWS = "layer 3, routing model: wrong only below 16 rows (wrong at 1 and 7, right at 16 and 64)"


def example(name):
    """An example's script as a module."""
    spec = importlib.util.spec_from_file_location(name, OWN_KERNEL / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Tensor:
    """A torch tensor, as far as check_kernel and the example need it: bf16 is kept as its bits."""

    def __init__(self, array, dtype=None):
        self.array, self.dtype = array, dtype or f"torch.{array.dtype}"
        self.shape = array.shape

    def values(self):
        return moe_diag.from_bits(self.array, "BF16") if self.dtype == "torch.bfloat16" else self.array

    def view(self, dtype):
        return Tensor(self.array.view("<u2" if dtype == "torch.bfloat16" else dtype.removeprefix("torch.")), dtype)

    def to(self, what):
        if what == "torch.bfloat16":
            return Tensor(moe_diag.to_bits(self.values(), "BF16"), what)
        assert what == "gpu", what
        return self

    detach = cpu = contiguous = lambda self: self

    def numpy(self):
        return self.array


def stand_ins():
    """Modules torch and triton without a GPU."""
    torch, triton, language = types.ModuleType("torch"), types.ModuleType("triton"), types.ModuleType("triton.language")
    torch.from_numpy = Tensor
    for name in ("bfloat16", "int16", "uint8"):
        setattr(torch, name, f"torch.{name}")
    triton.jit, triton.language, language.constexpr = lambda function: function, language, int
    return {"torch": torch, "triton": triton, "triton.language": language}


def attention(wrong=""):
    """A kernel for the steps from the scores to what attention gives, with the caches before its rows."""

    def run(case):
        q, k, qkv = (case.inputs[name].astype(np.float64) for name in ("q_post_rope", "k_post_rope", "qkv_matmul"))
        rows, (heads, size), kv_heads = case.rows, q.shape[1:], k.shape[1]
        v = qkv[:, -kv_heads * size :].reshape(rows, kv_heads, size)
        before = lambda name: case.inputs[name].reshape(-1, kv_heads, size)  # noqa: E731
        keys, values = np.concatenate([before("keys"), k]), np.concatenate([before("values"), v])
        if wrong == "cache" and case.first_position:
            values[: case.first_position] = 0
        if wrong == "shifted":
            values = np.concatenate([values[:1], values[:-1]])
        out = np.zeros((rows, heads, size))
        for head in range(heads):
            own = head * kv_heads // heads
            scores = q[:, head] @ keys[:, own].T / np.sqrt(size)
            seen = np.arange(len(keys)) <= case.first_position + np.arange(rows)[:, None]
            if wrong == "unseen":
                seen[:, : case.first_position] = False
            weights = np.where(seen, np.exp(scores - scores.max(1, keepdims=True)), 0)
            out[:, head] = weights / weights.sum(1, keepdims=True) @ values[:, own]
        return out.reshape(case.shape).astype(np.float32)

    return run


class CheckKernel(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory()
        cls.folder = pathlib.Path(cls.temporary.name)
        cls.cases = cls.write("cases", "--span", "moe_ffn")

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    @classmethod
    def write(cls, name, *options):
        command = [find_program(), "cases", "tiny", "--layers", "3", "--rows", "1,7,16,64", "--out", cls.folder / name, *options]
        subprocess.run(command, check=True, capture_output=True)
        return cls.folder / name

    def falsified(self, function, folder, **options):
        """The report of a kernel that does not hold, as the error has it."""
        with self.assertRaises(AssertionError) as caught:
            moe_diag.check_kernel(function, folder, **options)
        self.assertIsInstance(caught.exception, moe_diag.KernelFalsified)
        self.assertIn(caught.exception.report.text, str(caught.exception))
        return caught.exception.report

    def test_numpy(self):
        fused_moe = example("fused_moe")
        report = moe_diag.check_kernel(fused_moe.kernel(), self.cases)
        self.assertTrue(report)
        self.assertEqual((report.outcome, len(report.cases), report.causes), ("held", 12, []))
        wrong = self.falsified(fused_moe.kernel("below-16"), self.cases)
        self.assertIn(ROWS, wrong.text)
        self.assertEqual(wrong.cases["layer_03_rows_16"]["outcome"], "held")
        self.assertEqual(wrong.cases["layer_03_rows_7"]["outcome"], "falsified")
        shifted = self.falsified(fused_moe.kernel("off-by-one"), self.cases)
        self.assertEqual(shifted.causes, ["expert e is computed with the weights of expert (e + 1) mod 12"])

    def test_c(self):
        native, compiler = example("fused_moe_native"), shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if not compiler:
            self.skipTest("there is no C compiler")
        for name, more in (("right", []), ("wrong", ["-DWRONG_BELOW_16"])):
            library = self.folder / f"{name}.so"
            command = [compiler, "-O2", "-shared", "-fPIC", *more, OWN_KERNEL / "fused_moe.c", "-o", library, "-lm"]
            subprocess.run(command, check=True)
        self.assertTrue(moe_diag.check_kernel(native.kernel(self.folder / "right.so"), self.cases))
        self.assertIn(ROWS, self.falsified(native.kernel(self.folder / "wrong.so"), self.cases).text)

    def test_triton_with_a_stand_in(self):
        """All of the example but what Triton compiles."""

        def expert_linear(x, ids, weight, summed):
            w, values = weight.values()[:, :, :summed], x.values()[:, :summed]
            out = np.einsum("rsnk,rk->rsn", w[ids.array], values)
            return Tensor(moe_diag.to_bits(out, "BF16"), "torch.bfloat16")

        cases = self.write("step", "--span", "moe_expert_gate", "--numerics", "bf16", "--routing", "model")
        with mock.patch.dict(sys.modules, stand_ins()):
            script = example("triton_expert_linear")
            script.expert_linear = expert_linear
            options = {"arrays": "torch", "device": "gpu"}
            report = moe_diag.check_kernel(script.kernel(), cases, **options)
            self.assertEqual(report.outcome, "held")
            self.assertIn(ROWS, self.falsified(script.kernel("below-16"), cases, **options).text)

    def test_attention_with_caches(self):
        cases = self.write("attention", "--span", "attn_scores..attention", "--cached", "0,9")
        self.assertEqual(len(moe_diag.check_kernel(attention(), cases).cases), 8)
        wrong = self.falsified(attention("cache"), cases)
        for name, case in wrong.cases.items():
            self.assertEqual(case["outcome"], "falsified" if name.endswith("_cached_9") else "held", name)
        self.assertEqual(wrong.causes, ["the values in the cache are read as zeros"])
        unseen = self.falsified(attention("unseen"), cases)
        self.assertEqual(unseen.causes, ["the 9 positions in the cache are not attended to"])
        shifted = self.falsified(attention("shifted"), cases)
        self.assertIn("in attention, the value of each position is that of the position before", shifted.causes)

    def test_a_failing_step_of_a_run(self):
        """`repro --cases` writes the step with what the lane made of it; a right kernel holds in its place."""
        fault = "{inject: wrong_expert, stage: moe_expert_up, layer: 2, lane: step}"
        run = [find_program(), "run", ROOT / "contracts/quickstart.yaml", "--out", self.folder / "out", "--inject", fault]
        self.assertEqual(subprocess.run(run, capture_output=True).returncode, 1)
        folder = self.folder / "case"
        repro = [find_program(), "repro", self.folder / "out/verdict.json", "--cases", "--out", folder]
        done = subprocess.run(repro, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("FALSIFIED: moe_expert_up in f32", done.stdout)
        judged = subprocess.run([find_program(), "judge", folder], capture_output=True, text=True)
        self.assertEqual(judged.returncode, 1)
        self.assertIn("wrong_tensor", judged.stdout)

        def up(case):
            w, ids = case.weights["ffn_up_exps"], case.inputs["moe_router_indices"]
            return np.einsum("rsnk,rk->rsn", w[ids], case.inputs["ffn_norm"])

        self.assertTrue(moe_diag.check_kernel(up, folder))
        refused = subprocess.run([*repro[:-1], self.folder / "other", "--falsifier", "NONE"], capture_output=True, text=True)
        self.assertEqual(refused.returncode, 2)

    def test_outputs_that_cannot_be_judged(self):
        right = example("fused_moe").kernel()
        cut = self.falsified(lambda case: right(case)[:, :-1], self.cases)
        self.assertEqual(cut.outcome, "refused")
        self.assertIn("expected shape [1, 256], found [1, 255]", cut.text)
        with self.assertRaisesRegex(TypeError, "layer_03_rows_1: the kernel returned None: expected its output, of shape"):
            moe_diag.check_kernel(lambda case: None, self.cases)
        self.assertEqual(list(self.cases.glob("*/out.safetensors")), [])  # nothing of an earlier kernel stays
        with self.assertRaises(ZeroDivisionError) as caught:
            moe_diag.check_kernel(lambda case: 1 // 0, self.cases)
        if sys.version_info >= (3, 11):
            self.assertEqual(caught.exception.__notes__, ["moe_diag: in case layer_03_rows_1, 1 rows"])

    def test_output_types(self):
        """A kernel in bf16 may give bits, or wider values to be rounded."""
        right = example("fused_moe").kernel()
        cases = self.write("bf16", "--span", "moe_ffn", "--numerics", "bf16", "--routing", "model")
        for function in (right, lambda case: moe_diag.to_bits(right(case), "BF16")):
            self.assertTrue(moe_diag.check_kernel(function, cases, output="BF16"))
        self.assertTrue(moe_diag.check_kernel(lambda case: right(case).astype(np.float16), cases))
        case = next(moe_diag.open_cases(cases))
        self.assertEqual(case.types["ffn_down_exps"], "Q6_K")
        self.assertEqual(case.blocks["ffn_down_exps"].dtype, np.uint8)
        self.assertEqual((case.model["experts"], case.shape, case.output), (12, (1, 256), "moe_ffn_out"))

    def test_program_and_folder(self):
        with self.assertRaisesRegex(moe_diag.ProgramError, "holds no cases: write them with `moe-diag cases"):
            moe_diag.check_kernel(None, self.folder)
        with self.assertRaisesRegex(moe_diag.ProgramError, "program: /nowhere: there is no such program"):
            moe_diag.check_kernel(None, self.cases, program="/nowhere")
        with mock.patch.dict(os.environ, {"PATH": "/nowhere"}):
            os.environ.pop("MOE_DIAG_EXE")
            with self.assertRaisesRegex(moe_diag.ProgramError, "install it, or name it by program=, or by .* MOE_DIAG_EXE"):
                find_program()
        with self.assertRaisesRegex(ValueError, 'expected "numpy" or "torch"'):
            moe_diag.check_kernel(None, self.cases, arrays="jax")


class Safetensors(unittest.TestCase):
    GOLDEN = ROOT / "tests/golden/safetensors"

    def test_types_that_numpy_lacks(self):
        """Bit by bit as ml_dtypes rounds and widens."""
        golden = moe_diag.load_safetensors(self.GOLDEN / "small_types.safetensors", bits=True)
        widened = moe_diag.load_safetensors(self.GOLDEN / "small_types.safetensors")
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "t"
            for name, dtype in (("bf16", "BF16"), ("f8_e4m3", "F8_E4M3"), ("f8_e5m2", "F8_E5M2")):
                for x in (golden["x"], golden["x"].astype(np.float32)):
                    np.testing.assert_array_equal(moe_diag.to_bits(x, dtype), golden[name])
                np.testing.assert_array_equal(widened[f"all_{name}"], golden[f"values_{name}"].astype(np.float32))
                moe_diag.save_safetensors(file, {"x": golden["x"], "bits": golden[name]}, {"x": dtype, "bits": dtype})
                again = moe_diag.load_safetensors(file, bits=True)
                np.testing.assert_array_equal(again["x"], golden[name])
                np.testing.assert_array_equal(again["bits"], golden[name])

    def test_types_that_numpy_has(self):
        values = moe_diag.load_safetensors(self.GOLDEN / "values.safetensors")
        self.assertEqual(values["f16"].tolist(), [[0.0, 1.5, -2.25], [3.0, -0.125, 65504.0]])
        self.assertEqual((values["empty"].shape, values["i64"].tolist()), ((0, 4), [1, 2]))
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "t"
            values["scalar"] = np.float32(3)
            values["turned"] = np.arange(6.0).reshape(2, 3).T
            moe_diag.save_safetensors(file, values)
            again = moe_diag.load_safetensors(file)
            for name, array in values.items():
                self.assertEqual((again[name].dtype, again[name].shape), (array.dtype, array.shape))
                np.testing.assert_array_equal(again[name], array)

    def test_refusals(self):
        whole = (self.GOLDEN / "values.safetensors").read_bytes()
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "t"
            for data, words in (
                (whole[:5], "expected 8 bytes of length, found 5 bytes"),
                (whole[:50], "cut off: expected a header of"),
                (whole[:-1], "expected 24 bytes|expected 48 bytes|expected 16 bytes|found .* of"),
                (b"\x02" + bytes(7) + b"[]", "the header is no JSON object"),
                (whole.replace(b'"F16"', b'"F17"'), "type F17: expected one of F64"),
            ):
                file.write_bytes(data)
                with self.assertRaisesRegex(moe_diag.SafetensorsError, words):
                    moe_diag.load_safetensors(file)
            with self.assertRaisesRegex(moe_diag.SafetensorsError, "no type for complex128"):
                moe_diag.save_safetensors(file, {"x": np.ones(2, complex)})
            with self.assertRaisesRegex(moe_diag.SafetensorsError, "expected uint16, found uint8"):
                moe_diag.from_bits(np.zeros(2, np.uint8), "BF16")

    @unittest.skipUnless(importlib.util.find_spec("ml_dtypes"), "ml_dtypes is not here")
    def test_arrays_of_ml_dtypes(self):
        import ml_dtypes

        x = np.arange(-3, 3).astype(ml_dtypes.bfloat16)
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "t"
            moe_diag.save_safetensors(file, {"x": x, "wide": x}, {"wide": "F32"})
            again = moe_diag.load_safetensors(file, bits=True)
            self.assertEqual((again["x"].dtype, again["wide"].dtype), (np.uint16, np.float32))
            np.testing.assert_array_equal(moe_diag.from_bits(again["x"], "BF16"), again["wide"])


if __name__ == "__main__":
    unittest.main()
