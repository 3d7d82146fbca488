# SPDX-License-Identifier: MIT
"""An FP8-by-blocks MoE in numpy, as serving engines compute it: sound within three bf16 roundings of what its numerics give, at
every step and over the span; with 5 % wrong on a quarter of one expert's `down`, ten times that and named.

The kernel quantises by itself: activations of 128 columns to E4M3 with an f32 scale, weights in blocks of 128 x 128, outputs in
bf16. The model's expert weights are what such a file holds, so that quantising them again changes nothing."""

import pathlib
import subprocess
import tempfile
import unittest

import gguf
import moe_diag
import numpy as np
from moe_diag.kernel import find_program

BF16_ROUNDING = 0.2124 * 2.0**-7  # rms; docs/numerics.md
STEPS = ["moe_expert_gate", "moe_expert_up", "moe_expert_swiglu", "moe_expert_out", "moe_expert_weighted", "moe_ffn_out"]
BLOCK = 128
WRONG_EXPERT = 5


def bf16(x):
    return moe_diag.from_bits(moe_diag.to_bits(np.asarray(x, np.float32), "BF16"), "BF16")


def fp8(x):
    """Codes of E4M3 and the scale of each last axis, which holds what shares one."""
    largest = np.abs(x).max(-1, keepdims=True)
    scale = np.where(largest > 0, largest / np.float32(448), np.float32(1)).astype(np.float32)
    return moe_diag.from_bits(moe_diag.to_bits(np.clip(x / scale, -448, 448), "F8_E4M3"), "F8_E4M3"), scale


def quantised(weight):
    """A matrix of each expert in blocks of 128 x 128: codes and scales, both as wide as the matrix has blocks."""
    experts, rows, columns = weight.shape
    blocks = weight.reshape(experts, rows // BLOCK, BLOCK, columns // BLOCK, BLOCK).transpose(0, 1, 3, 2, 4)
    codes, scale = fp8(blocks.reshape(*blocks.shape[:3], -1))
    return codes.reshape(blocks.shape), scale[..., 0]


def whole(codes, scale):
    blocks = (codes * scale[..., None, None]).transpose(0, 1, 3, 2, 4)
    return blocks.reshape(blocks.shape[0], blocks.shape[1] * BLOCK, -1).astype(np.float32)


def matmul(x, weight, ids):
    """x is [rows, columns] or [rows, slots, columns]; gives [rows, slots, outputs], as a kernel does: products of codes summed in
    f32 in each block of 128, the sums scaled and added."""
    codes, scale = weight
    x = np.broadcast_to(x[:, None], (*ids.shape, x.shape[-1])) if x.ndim == 2 else x
    read, own = fp8(x.reshape(*x.shape[:2], -1, BLOCK))
    out = np.zeros((*ids.shape, codes.shape[1] * BLOCK), np.float32)
    for row, slot in np.ndindex(*ids.shape):
        expert = ids[row, slot]
        for block in range(read.shape[2]):
            sums = codes[expert, :, block] @ read[row, slot, block]  # [blocks of outputs, 128]
            scaled = sums * (scale[expert, :, block, None] * own[row, slot, block])
            out[row, slot] += scaled.reshape(-1)
    return bf16(out)


class Engine:
    """The steps of the span, each on the values that it is given."""

    def __init__(self, case, wrong=False):
        names = {"gate": "ffn_gate_exps", "up": "ffn_up_exps", "down": "ffn_down_exps"}
        self.weights = {name: quantised(case.weights[key]) for name, key in names.items() if key in case.weights}
        if wrong and "down" in self.weights:
            codes, scale = self.weights["down"]
            codes = codes.copy()
            flat = codes[WRONG_EXPERT]  # [blocks of outputs, blocks of columns, 128, 128]
            flat[:, :, : BLOCK // 4] = flat[:, :, : BLOCK // 4] * np.float32(1.05)
            self.weights["down"] = codes, scale

    def step(self, stage, values):
        x = lambda name: np.asarray(values[name], np.float32)  # noqa: E731
        ids = values["moe_router_indices"] if "moe_router_indices" in values else None
        if stage == "moe_expert_gate":
            return matmul(x("ffn_norm"), self.weights["gate"], ids)
        if stage == "moe_expert_up":
            return matmul(x("ffn_norm"), self.weights["up"], ids)
        if stage == "moe_expert_swiglu":
            gate = x("moe_expert_gate")
            return bf16(gate / (1 + np.exp(-gate)) * x("moe_expert_up"))
        if stage == "moe_expert_out":
            return matmul(x("moe_expert_swiglu"), self.weights["down"], ids)
        if stage == "moe_expert_weighted":
            return bf16(x("moe_expert_out") * x("moe_router_weights")[..., None])
        return bf16(x("moe_expert_weighted").sum(1, dtype=np.float32))


def kernel(wrong=False, steps=None):
    def run(case):
        engine, values = Engine(case, wrong), dict(case.inputs)
        for stage in steps or [case.output]:
            values[stage] = engine.step(stage, values)
        return values[case.output]

    return run


def quantise_experts(path):
    """Makes the experts' weights of a GGUF file in F32 what FP8 in blocks holds."""
    for tensor in gguf.GGUFReader(path, "r+").tensors:
        if tensor.name.endswith("_exps.weight"):
            tensor.data[:] = whole(*quantised(np.array(tensor.data)))


class Fp8(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory()
        cls.folder = pathlib.Path(cls.temporary.name)
        cls.model = cls.folder / "model.gguf"
        synth = [find_program(), "synth", cls.model, "--preset", "tiny", "--layers", "2", "--quant", "f32", "--seed", "3"]
        subprocess.run(synth, check=True, capture_output=True)
        quantise_experts(cls.model)

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def cases(self, span):
        out = self.folder / span
        command = [find_program(), "cases", self.model, "--span", span, "--layers", "1", "--rows", "1,16", "--reads", "fp8_128",
                   "--stored", "bf16", "--routing", "model", "--out", out]  # fmt: skip
        if not out.exists():
            subprocess.run(command, check=True, capture_output=True)
        return out

    def errors(self, report):
        return [case["worst"]["error"] for case in report.cases.values()]

    def test_weights_are_what_fp8_holds(self):
        case = next(moe_diag.open_cases(self.cases("moe_expert_out")))
        weight = case.weights["ffn_down_exps"]
        np.testing.assert_array_equal(whole(*quantised(weight)), weight)

    def test_sound_at_every_step(self):
        for stage in STEPS:
            report = moe_diag.check_kernel(kernel(), self.cases(stage))
            self.assertLess(max(self.errors(report)), 3 * BF16_ROUNDING, stage)

    def test_sound_over_the_span_and_wrong_weights_named(self):
        cases = self.cases("moe_ffn")
        sound = moe_diag.check_kernel(kernel(steps=STEPS), cases)
        self.assertLess(max(self.errors(sound)), 3 * BF16_ROUNDING)
        wrong = moe_diag.check_kernel(kernel(True, STEPS), cases, check=False)
        self.assertGreater(max(self.errors(wrong)), 10 * max(self.errors(sound) + [BF16_ROUNDING]))
        self.assertEqual(wrong.outcome, "falsified")

        step = moe_diag.check_kernel(kernel(True), self.cases("moe_expert_out"), check=False)
        self.assertEqual(step.outcome, "falsified")
        case = step.cases["layer_01_rows_16"]
        self.assertEqual({failing["expert"] for failing in case["failing"]}, {WRONG_EXPERT})
        self.assertEqual((case["columns"][0][0], case["columns"][-1][1]), (0, BLOCK + BLOCK // 4 - 1))
        self.assertRegex(case["cause"], r"scale: multiplied by 1\.0(49|50)")


if __name__ == "__main__":
    unittest.main()
