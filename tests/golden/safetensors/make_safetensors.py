# SPDX-License-Identifier: MIT
"""Writes values.safetensors with the safetensors package: what our reader has to read.

    python3 make_safetensors.py [folder]      needs numpy and safetensors 0.8.0

Every type that numpy has is there, and BF16 through the package's own bytes.
"""
import pathlib
import sys

import numpy as np
from safetensors import TensorSpec, serialize_file
from safetensors.numpy import save_file

values = np.array([[0.0, 1.5, -2.25], [3.0, -0.125, 65504.0]])


def main(folder):
    save_file(
        {
            "f64": values,
            "f32": values.astype(np.float32),
            "f16": values.astype(np.float16),
            "i32": np.array([[0, 7, -1], [2, 3, 2147483647]], dtype=np.int32),
            "u8": np.arange(5, dtype=np.uint8),
            "i64": np.array([1, 2], dtype=np.int64),
            "empty": np.zeros((0, 4), dtype=np.float32),
        },
        folder / "values.safetensors",
        metadata={"made by": "make_safetensors.py"},
    )
    upper = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)  # exact but for 65504
    spec = TensorSpec(dtype="bfloat16", shape=[2, 3], data_ptr=upper.ctypes.data, data_len=upper.nbytes)
    serialize_file({"bf16": spec}, folder / "bf16.safetensors", None)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parent)
