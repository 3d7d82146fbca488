# SPDX-License-Identifier: MIT
"""Writes what engines read instead of activations and weights, and keep instead of keys and values, made by numpy,
ml_dtypes and gguf.

    python3 make_roundings.py [folder]     needs numpy, ml_dtypes and gguf, at the versions in versions.json

x.npy holds float32 activations, of which each row shows another trouble; every other file what they are rounded to, in
float64. weights.npy holds float32 weights, with edges that are no whole blocks; weights_*.npy what they are rounded to, in
float32. FP8 and FP4 are ml_dtypes' float8_e4m3fn and float4_e2m1fn, Q4_0 is the gguf package's.
"""
import importlib.metadata
import json
import pathlib
import sys

import gguf
import ml_dtypes
import numpy as np

COLS = 512
LARGEST = {ml_dtypes.float8_e4m3fn: np.float32(448), ml_dtypes.float4_e2m1fn: np.float32(6)}


def activations(random: np.random.RandomState) -> np.ndarray:
    normal = random.standard_normal((8, COLS))
    normal[1] **= 3  # heavy tails
    normal[2, 100] = 408.0  # one massive activation
    normal[3] *= 1e-3
    normal[4, :300] = 0  # whole blocks of zeros, and a part of one
    normal[5] = random.randint(-254, 255, COLS) / 2  # halves: ties, if the scale is 1
    normal[5, ::32] = 448
    normal[6] = np.linspace(-1, 3, COLS)
    normal[7] = np.abs(normal[7]) * 1e4  # beyond FP8 without a scale
    return normal.astype(np.float32)


def cast(x: np.ndarray, element) -> np.ndarray:
    """To the nearest element, ties to even; values beyond the largest become it."""
    largest = LARGEST[element]
    return np.clip(x, -largest, largest).astype(element).astype(np.float64)


def fp8(x: np.ndarray, group: int, power_of_two: bool) -> np.ndarray:
    """vLLM's per_token_group_quant_fp8: y / scale in float32, scale = max(|y|) / 448, rounded up to a power of two."""
    groups = x.reshape(-1, group)
    scale = np.maximum(np.abs(groups).max(axis=1, keepdims=True), np.float32(1e-10)) / np.float32(448)
    if power_of_two:
        scale = np.exp2(np.ceil(np.log2(scale)))
    assert scale.dtype == np.float32
    return (cast(groups / scale, ml_dtypes.float8_e4m3fn) * scale.astype(np.float64)).reshape(x.shape)


def microscaled(x: np.ndarray, element, top: int) -> np.ndarray:
    """OCP Microscaling Formats 1.0, 6.3: a block of 32 has the scale 2^(floor(log2(max)) - top)."""
    groups = x.astype(np.float64).reshape(-1, 32)
    largest = np.abs(groups).max(axis=1, keepdims=True)
    scale = np.exp2(np.floor(np.log2(np.where(largest > 0, largest, 1))) - top)
    return (cast(groups / scale, element) * scale).reshape(x.shape)


def fp8_static(x: np.ndarray, scale: float) -> np.ndarray:
    """vLLM's static scaled_fp8_quant: y times 1 / scale in float32."""
    scale = np.float32(scale)
    return cast(x * (np.float32(1) / scale), ml_dtypes.float8_e4m3fn) * scale.astype(np.float64)


def reciprocal(x: np.ndarray) -> np.ndarray:
    return np.divide(np.float32(1), x, out=np.zeros_like(x), where=x != 0)


def nvfp4(x: np.ndarray, scale: float | None) -> np.ndarray:
    """vLLM's ref_nvfp4_quant; without a scale that of all values is one of each row: its largest / (448 * 6)."""
    if scale is None:
        times = np.float32(448 * 6) * reciprocal(np.abs(x).max(axis=1, keepdims=True))
    else:
        times = np.full((len(x), 1), np.float32(1) / np.float32(scale))
    groups, times = x.reshape(len(x), -1, 16), times[:, :, None]
    wanted = times * (np.abs(groups).max(axis=2, keepdims=True) * (np.float32(1) / np.float32(6)))
    own = np.minimum(wanted, np.float32(448)).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    quantised = cast(groups * reciprocal(own * reciprocal(times)), ml_dtypes.float4_e2m1fn)
    assert own.dtype == times.dtype == np.float32
    return (quantised * (own.astype(np.float64) * reciprocal(times))).reshape(x.shape)


def hadamard(x: np.ndarray, block: int) -> np.ndarray:
    """Each block times Sylvester's matrix over the root of its size, by sums and differences in double."""
    blocks = x.astype(np.float64).reshape(-1, block)
    rotated, half = blocks, 1
    while half < block:
        pairs = rotated.reshape(-1, block // (2 * half), 2, half)
        low, high = pairs[:, :, 0], pairs[:, :, 1]
        rotated = np.stack([low + high, low - high], axis=2).reshape(-1, block)
        half *= 2
    rotated = rotated / np.sqrt(float(block))
    matrix = np.ones((1, 1))
    while len(matrix) < block:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    assert np.allclose(rotated, blocks @ matrix / np.sqrt(block), rtol=1e-12, atol=1e-12 * np.abs(blocks).max())
    return rotated.reshape(x.shape)


def rotated_q4_0(x: np.ndarray, block: int) -> np.ndarray:
    return hadamard(q4_0(hadamard(x, block).astype(np.float32)), block)


def q4_0(x: np.ndarray) -> np.ndarray:
    blocks = gguf.quants.quantize(x, gguf.GGMLQuantizationType.Q4_0)
    return gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q4_0).astype(np.float64)


def weights(random: np.random.RandomState) -> np.ndarray:
    w = random.standard_normal((150, 160)) * 0.02
    w[:128, :128] *= np.exp(random.standard_normal((128, 128)) * 2)  # heavy tails
    w[60, 60] = 30.0  # one massive weight
    w[:128, 128:] = 0
    w[128:, :128] *= 2.0**-7
    w[128, 0] = 448 * 2.0**-7  # a scale that is a power of two
    w[128:, 128:] *= 1e-4  # a block below the least scale
    return w.astype(np.float32)


def fp8_blocks(w: np.ndarray, power_of_two: bool) -> np.ndarray:
    """DeepGEMM's per_block_cast_to_fp8, and the product of each value and its scale, all in float32."""
    out = np.empty_like(w)
    for row in range(0, w.shape[0], 128):
        for col in range(0, w.shape[1], 128):
            block = w[row : row + 128, col : col + 128]
            scale = np.maximum(np.abs(block).max(), np.float32(1e-4)) / np.float32(448)
            if power_of_two:
                fraction, exponent = np.frexp(scale)
                scale = np.float32(np.ldexp(1.0, exponent - 1 if fraction == 0.5 else exponent))
            assert scale.dtype == np.float32
            quantised = (block * (np.float32(1) / scale)).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
            assert np.isfinite(quantised).all()
            out[row : row + 128, col : col + 128] = quantised * scale
    return out


def main() -> None:
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent)
    x, w = activations(np.random.RandomState(16)), weights(np.random.RandomState(17))
    made = {
        "x": x,
        "q4_0": q4_0(x),
        "fp8": cast(x, ml_dtypes.float8_e4m3fn),
        "fp8_token": fp8(x, COLS, False),
        "fp8_128": fp8(x, 128, False),
        "fp8_128_pow2": fp8(x, 128, True),
        "mxfp8": microscaled(x, ml_dtypes.float8_e4m3fn, 8),
        "mxfp4": microscaled(x, ml_dtypes.float4_e2m1fn, 2),
        "fp8_static": fp8_static(x, 0.02),
        "nvfp4": nvfp4(x, None),
        "nvfp4_given": nvfp4(x, 0.01),
        "hadamard_64_q4_0": rotated_q4_0(x, 64),
        "hadamard_128_q4_0": rotated_q4_0(x, 128),
        "weights": w,
        "weights_bf16": w.astype(ml_dtypes.bfloat16).astype(np.float32),
        "weights_fp8_block": fp8_blocks(w, False),
        "weights_fp8_block_pow2": fp8_blocks(w, True),
    }
    for name, values in made.items():
        np.save(folder / f"{name}.npy", values)
    versions = {package: importlib.metadata.version(package) for package in ("numpy", "ml_dtypes", "gguf")}
    (folder / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")


if __name__ == "__main__":
    main()
