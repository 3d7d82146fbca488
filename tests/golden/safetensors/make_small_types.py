# SPDX-License-Identifier: MIT
"""Writes small_types.safetensors with the safetensors package and ml_dtypes: types that numpy lacks.

    python3 make_small_types.py [folder]      needs numpy 2.4, ml_dtypes 0.5 and safetensors 0.8

x are values in F64, NAME what ml_dtypes rounds them to, all_NAME every bit pattern, of BF16 some, and
values_NAME what these are, in F64.
"""
import pathlib
import sys

import ml_dtypes
import numpy as np
from safetensors import TensorSpec, serialize_file

TYPES = {"bfloat16": ("bf16", np.uint16), "float8_e4m3fn": ("f8_e4m3", np.uint8), "float8_e5m2": ("f8_e5m2", np.uint8)}


def values():
    random = np.random.RandomState(1)
    edges = [0.0, -0.0, 1, -1, 1.0625, 1.1875, 447, 448, 463.9, 464, 464.1, 479, 480, 57344, 61439, 61440, 61441, 65536]
    edges += [2.0**-9, 2.0**-10, 2.0**-10 * 1.01, 1.5 * 2**-9, 2.5 * 2**-9, 2.0**-7 * 0.99, 2.0**-16, 2.0**-17, 3e-5]
    edges += [1 + 2.0**-8, 1 + 3 * 2.0**-8, 3.39e38, -3.4e38, 1e-40, 4e-41, np.inf, -np.inf]
    many = random.standard_normal(800) * 10.0 ** random.randint(-4, 4, 800)
    return np.concatenate([edges, many]).astype(np.float32).astype(np.float64)


def spec(array, dtype):
    return TensorSpec(dtype=dtype, shape=list(array.shape), data_ptr=array.ctypes.data, data_len=array.nbytes)


def main(folder):
    x = values()
    kept, tensors = [x], {"x": spec(x, "float64")}
    for name, (short, bits) in TYPES.items():
        kind = getattr(ml_dtypes, name)
        codes = np.arange(256, dtype=np.uint8) if bits is np.uint8 else np.arange(0, 65536, 61).astype(np.uint16)
        rounded, every = x.astype(np.float32).astype(kind).view(bits), codes
        with np.errstate(invalid="ignore"):
            numbers = codes.view(kind).astype(np.float64)
        kept += [rounded, every, numbers]
        tensors |= {short: spec(rounded, name), f"all_{short}": spec(every, name), f"values_{short}": spec(numbers, "float64")}
    serialize_file(tensors, folder / "small_types.safetensors", None)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parent)
