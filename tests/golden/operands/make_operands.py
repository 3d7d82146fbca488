# SPDX-License-Identifier: MIT
"""Writes what quantised and rounded operands of products have to be, made by numpy and the gguf package.

    python3 make_operands.py [folder]     needs numpy and gguf, at the versions in operands.json

operands.bin holds arrays one after the other (little-endian), operands.json their names, types, shapes and offsets:
    x                    activations, of which each row shows another trouble; 512 values a row
    q8_0.d, q8_0.q       x in blocks of 32, as ggml's quantize_row_q8_0 gives them on x86 with AVX2: see q8_0()
    q8_k.d, q8_k.q       x in blocks of 256, as ggml's quantize_row_q8_K gives them on x86 with FMA: see q8_k()
    <type>.blocks        rows of a weight, in the blocks of a file
    <type>.y             x times those rows in float64: the quantised x times what the gguf package decodes the rows to
    any                  float32 of any kind, NaN and infinities too
    any.bf16, any.f16    the bits of what they round to: by the gguf package's BF16, by numpy's float16
"""
import importlib.metadata
import json
import pathlib
import sys

import gguf
import numpy as np

COLS = 512
ROWS = 5
TYPES = {"Q8_0": ([0], "q8_0"), "Q4_K": ([0, 2], "q8_k"), "Q6_K": ([208], "q8_k")}


def activations(random: np.random.RandomState) -> np.ndarray:
    normal = random.standard_normal((8, COLS))
    normal[1] **= 3  # heavy tails
    normal[2, 100] = 408.0  # one massive activation
    normal[3] *= 1e-3  # a d that is a subnormal f16
    normal[4, :300] = 0
    normal[5] = random.randint(-254, 255, COLS) / 2  # halves: ties, if the largest is 127
    normal[5, ::32] = 127
    normal[6] = np.linspace(-1, 3, COLS)
    normal[7] = np.abs(normal[7]) * 1e4
    return normal.astype(np.float32)


def q8_k(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of 256: the value of largest magnitude, sign and all, becomes -127; whole numbers nearest, ties to even.

    ggml rounds by adding 3 * 2^22 to the product with the inverse. A compiler with FMA makes one instruction of both,
    so the product is not rounded by itself. In float64 it is exact."""
    blocks = x.reshape(-1, 256)
    largest = blocks[np.arange(len(blocks)), np.abs(blocks).argmax(axis=1)]
    with np.errstate(divide="ignore"):
        inverse = np.where(largest == 0, np.float32(0), np.float32(-127) / largest)
        d = np.where(inverse == 0, np.float32(0), np.float32(1) / inverse)
    assert inverse.dtype == d.dtype == np.float32
    q = np.minimum(np.rint(blocks.astype(np.float64) * inverse[:, None]), 127)
    return d.astype("<f4"), q.astype(np.int8)


def q8_0(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of 32: the scale is an f16, the whole numbers are nearest to the rounded product with 127 / largest, ties
    to even. The gguf package multiplies by 1 / (largest / 127) and rounds ties away from zero, as ggml does without
    AVX2."""
    blocks = x.reshape(-1, 32)
    largest = np.abs(blocks).max(axis=1)
    with np.errstate(divide="ignore"):
        inverse = np.where(largest == 0, np.float32(0), np.float32(127) / largest)
    assert inverse.dtype == np.float32
    d = (largest / np.float32(127)).astype("<f2").astype("<f4")
    return d, np.rint(blocks * inverse[:, None]).astype(np.int8)


def weight_blocks(random: np.random.RandomState, name: str, scales: list[int]) -> np.ndarray:
    values, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    blocks = random.randint(0, 256, (ROWS * COLS // values, size)).astype(np.uint8)
    for at in scales:
        d = random.uniform(1e-3, 1e-2, len(blocks)).astype("<f2")
        blocks[:, at : at + 2] = d.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(ROWS, -1)


def any_floats(random: np.random.RandomState) -> np.ndarray:
    bits = random.randint(0, 1 << 32, 2000, dtype=np.uint64).astype("<u4")
    near_one = random.standard_normal(500).astype("<f4").view("<u4")
    ties = np.array([0x3F808000, 0x3F818000, 0xBF808000, 0x7F7F8000, 0x7F7F7FFF, 0x7F800000, 0xFF800000, 0x7FC00000])
    return np.concatenate((bits, near_one, ties.astype("<u4"))).view("<f4")


def main() -> None:
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).parent
    random = np.random.RandomState(22)
    x = activations(random)
    arrays = {"x": x}
    quantised = {"q8_0": q8_0(x), "q8_k": q8_k(x)}
    for name, (d, q) in quantised.items():
        arrays |= {f"{name}.d": d, f"{name}.q": q}
    for name, (scales, reading) in TYPES.items():
        d, q = quantised[reading]
        read = (d[:, None].astype(np.float64) * q).reshape(x.shape)
        blocks = weight_blocks(random, name, scales)
        decoded = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name]).astype(np.float64)
        arrays |= {f"{name}.blocks": blocks, f"{name}.y": (read @ decoded.T).astype("<f8")}
    values = any_floats(random)
    arrays["any"] = values
    with np.errstate(all="ignore"):
        arrays["any.bf16"] = gguf.quants.quantize(values[None], gguf.GGMLQuantizationType.BF16).ravel().view("<u2")
        arrays["any.f16"] = values.astype("<f2").view("<u2")

    index, raw = [], b""
    for name, array in arrays.items():
        index.append({"name": name, "dtype": array.dtype.str, "shape": list(array.shape), "offset": len(raw)})
        raw += array.tobytes()
        raw += bytes(-len(raw) % 8)
    (folder / "operands.bin").write_bytes(raw)
    versions = {name: importlib.metadata.version(name) for name in ("gguf", "numpy")}
    lines = ",\n  ".join(json.dumps(entry) for entry in index)
    text = f'{{\n"versions": {json.dumps(versions)},\n"arrays": [\n  {lines}\n]\n}}\n'
    (folder / "operands.json").write_text(text)


if __name__ == "__main__":
    main()
