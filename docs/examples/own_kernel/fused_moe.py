# SPDX-License-Identifier: MIT
"""The test of a kernel: runs it on every case of a folder that `moe-diag cases` wrote.

    python3 fused_moe.py FOLDER [--off-by-one]      needs numpy
"""
import json
import pathlib
import struct
import sys

import numpy as np

TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "I32": np.int32, "U8": np.uint8, "BF16": np.uint16}


def load(path):
    """The arrays of a safetensors file, by name. `safetensors.numpy.load_file` does the same."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    arrays = {}
    for name, t in json.loads(data[8 : 8 + length]).items():
        if name == "__metadata__":
            continue
        first, last = (8 + length + offset for offset in t["data_offsets"])
        array = np.frombuffer(data[first:last], TYPES[t["dtype"]]).reshape(t["shape"])
        if t["dtype"] == "BF16":  # the upper half of a float32
            array = (array.astype(np.uint32) << 16).view(np.float32)
        arrays[name] = array
    return arrays


def save(path, name, array):
    """One float32 array as a safetensors file. `safetensors.numpy.save_file` does the same."""
    data = np.ascontiguousarray(array, np.float32).tobytes()
    header = json.dumps({name: {"dtype": "F32", "shape": array.shape, "data_offsets": [0, len(data)]}}).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def fused_moe(x, ids, scale, gate, up, down, off_by_one=False):
    """Stands for your kernel: x is [rows, hidden], ids and scale are [rows, used], the weights [experts, ...]."""
    out = np.zeros_like(x)
    for row in range(x.shape[0]):
        for slot, expert in enumerate(ids[row]):
            if off_by_one:
                expert = (expert + 1) % len(gate)
            g, u = gate[expert] @ x[row], up[expert] @ x[row]
            out[row] += scale[row, slot] * (down[expert] @ (g / (1 + np.exp(-g)) * u))
    return out


def main(folder, off_by_one):
    index = json.loads((folder / "case.json").read_text())
    weights = {layer["layer"]: load(folder / layer["file"]) for layer in index["layers"]}
    for case in index["cases"]:
        inputs = load(folder / case["in"]["file"])
        of = lambda name: weights[case["layer"]][f"blk.{case['layer']}.{name}.weight.f32"]
        out = fused_moe(
            inputs["ffn_norm"], inputs["moe_router_indices"], inputs["moe_router_weights"],
            of("ffn_gate_exps"), of("ffn_up_exps"), of("ffn_down_exps"), off_by_one,
        )
        save(folder / case["out"]["file"], case["out"]["tensor"], out)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), "--off-by-one" in sys.argv[2:])
