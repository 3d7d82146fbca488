# SPDX-License-Identifier: MIT
"""Writes blocks of every weight type and the float32 values that the gguf package decodes them to.

    python3 make_dequant.py [folder]      needs numpy and gguf, at the versions in index.json

TYPE.blocks.bin holds raw blocks one after the other, TYPE.f32.bin their values (little-endian float32, block after
block), index.json how many there are. Per type: random bytes, whose f16 scales have any exponent; each edge case of f16
as the scale of a block; and all zeros, all ones and counting bytes under the scale one, which show a swapped order.
For F16 and BF16 a block is one value, and every sign and exponent occurs.

All values but NaN are meant to be matched bit for bit, signed zeros too. Products of scales and quants are exact in
float32, so each value is rounded once at most, and fused or not makes no difference. NaN is stored as 0x7fc00000
whatever its sign and payload, because those depend on the processor: match it with any NaN.
"""
import importlib.metadata
import json
import pathlib
import sys

import gguf
import numpy as np

# Type: where its f16 scales stand in the block, and the number of random blocks. The types of a Q4_K_M file and the
# small ones have many; the others have enough to show each bit field. A further type is added at the end, so that the
# blocks of those before it stay as they are.
TYPES = {
    "Q4_0": ([0], 64),
    "Q4_1": ([0, 2], 64),
    "Q5_0": ([0], 64),
    "Q5_1": ([0, 2], 64),
    "Q8_0": ([0], 64),
    "Q2_K": ([80, 82], 16),
    "Q3_K": ([108], 16),
    "Q4_K": ([0, 2], 64),
    "Q5_K": ([0, 2], 16),
    "Q6_K": ([208], 64),
    "IQ4_NL": ([0], 64),
    "IQ4_XS": ([0], 16),
    "MXFP4": ([], 64),  # its scale is a byte, of which random ones have most values
}
ONE = 0x3C00
# Zeros, least and largest subnormal, least normal, minus one, largest, infinities, quiet and signalling NaN.
EDGES = [0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0xBC00, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00, 0x7D01]


def random_bytes(random: np.random.RandomState, *shape: int) -> np.ndarray:
    return random.randint(0, 256, shape).astype(np.uint8)


def set_scale(block: np.ndarray, at: int, bits: int) -> None:
    block[at : at + 2] = np.frombuffer(bits.to_bytes(2, "little"), np.uint8)


def quantised_blocks(random: np.random.RandomState, size: int, scales: list[int], count: int) -> np.ndarray:
    edges = random_bytes(random, len(EDGES), size)
    for i, block in enumerate(edges):
        for nth, at in enumerate(scales):
            set_scale(block, at, EDGES[(i + 5 * nth) % len(EDGES)])
    patterns = np.stack([np.zeros(size), np.full(size, 255), np.arange(size) % 256]).astype(np.uint8)
    for block in patterns:
        for at in scales:
            set_scale(block, at, ONE)
    return np.concatenate((random_bytes(random, count, size), edges, patterns))


def float_blocks(random: np.random.RandomState, mantissa_bits: int, count: int) -> np.ndarray:
    """Every sign and exponent of a 16-bit float, with edge mantissas and count random ones."""
    high = np.arange(1 << (16 - mantissa_bits))[:, None] << mantissa_bits
    top = (1 << mantissa_bits) - 1
    mantissas = np.concatenate(([0, 1, top // 2 + 1, top], random.randint(0, top + 1, count)))
    return (high | mantissas).astype("<u2").reshape(-1, 1).view(np.uint8)


def main() -> None:
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).parent
    random = np.random.RandomState(20)
    blocks = {"F16": float_blocks(random, 10, 20), "BF16": float_blocks(random, 7, 2)}
    for name, (scales, count) in TYPES.items():
        size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]][1]
        blocks[name] = quantised_blocks(random, size, scales, count)

    index = {"versions": {name: importlib.metadata.version(name) for name in ("gguf", "numpy")}, "types": []}
    for name, raw in blocks.items():
        with np.errstate(all="ignore"):
            values = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name])
        bits = np.where(np.isnan(values), np.uint32(0x7FC00000), values.view(np.uint32)).astype("<u4")
        raw.tofile(folder / f"{name}.blocks.bin")
        bits.tofile(folder / f"{name}.f32.bin")
        entry = {"type": name, "blocks": len(raw), "block_bytes": raw.shape[1], "block_values": values.shape[1]}
        index["types"].append(entry)
    lines = ",\n  ".join(json.dumps(entry) for entry in index["types"])
    text = f'{{\n"versions": {json.dumps(index["versions"])},\n"types": [\n  {lines}\n]\n}}\n'
    (folder / "index.json").write_text(text)


if __name__ == "__main__":
    main()
