# SPDX-License-Identifier: MIT
"""Writes two small dumps in the native layout with numpy, ml_dtypes and the safetensors package, and what their values are.

    python3 make_recordings.py [folder]      needs numpy 2.4, ml_dtypes 0.6 and safetensors 0.8

The model has 3 layers, 64 wide, and 2 of 6 experts a token. `npy` has the rows of all calls in one array a stage, of the
types and header versions that numpy writes; `safetensors` has the same rows in a file for each call. `expected` has the
values in float64.
"""
import json
import pathlib
import sys

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

CALLS = [{"request": "r0", "first": 0, "rows": 4, "tokens": [3, 1, 4, 1]}, {"request": "r0", "tokens": [5]}]
HEAD = {"format": "moe-diag dump", "version": 1, "engine": "numpy", "numerics": "bf16", "closed": True, "calls": 2}


def stages():
    random = np.random.RandomState(17)
    values = lambda scale, dtype: (random.standard_normal((5, 64)) * scale).astype(dtype)
    first = (1 / (1 + np.exp(-random.standard_normal((5, 1))))).astype(ml_dtypes.bfloat16)
    weights = np.concatenate([first, (1 - first.astype(np.float64)).astype(ml_dtypes.bfloat16)], axis=1)
    return {
        "embedding": values(0.02, np.float16),
        "layer_00/moe_router_indices": np.array([[1, 0], [5, 2], [0, 1], [4, 3], [1, 5]], np.int64),
        "layer_00/moe_router_weights": weights,
        "layer_00/moe_ffn_out": values(0.3, np.float32),
        "layer_02/post_ffn_residual": values(2, ml_dtypes.bfloat16),
        "final_norm": values(1, np.float64),
    }


def write_npy(path, array, version):
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        np.lib.format.write_array(file, array, version)


def write_head(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dump.json").write_text(json.dumps(HEAD) + "\n")
    (folder / "calls.jsonl").write_text("".join(json.dumps(call) + "\n" for call in CALLS))


def main(folder):
    arrays = stages()
    for name in ("npy", "safetensors"):
        write_head(folder / name)
    for number, (name, array) in enumerate(arrays.items()):
        write_npy(folder / "npy" / f"{name}.npy", array, (number % 3 + 1, 0))
        write_npy(folder / "expected" / f"{name}.npy", array.astype(np.float64), (1, 0))
    for number, (first, end) in enumerate([(0, 4), (4, 5)]):
        rows = {name: np.ascontiguousarray(array[first:end]) for name, array in arrays.items()}
        save_file(rows, folder / "safetensors" / f"call_{number:05}.safetensors")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parent)
