# SPDX-License-Identifier: MIT
"""Judges a kernel in a shared library, of C, C++, Rust or CUDA: fused_moe.c and fused_moe.rs say how they are compiled.

    python3 fused_moe_native.py FOLDER LIBRARY               needs the package moe_diag
"""
import ctypes
import pathlib
import sys

import numpy as np

import moe_diag


def kernel(library):
    """The function that check_kernel calls."""
    fused_moe = ctypes.CDLL(str(pathlib.Path(library).resolve())).fused_moe
    fused_moe.argtypes = [ctypes.c_void_p] * 7 + [ctypes.c_int64] * 4

    def run(case):
        arrays = [case.inputs[name] for name in ("ffn_norm", "moe_router_indices", "moe_router_weights")]
        arrays += [case.weights[name] for name in ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")]
        arrays = [np.ascontiguousarray(array) for array in arrays]
        out = np.empty(case.shape, np.float32)
        used, width, hidden = arrays[1].shape[1], *arrays[3].shape[1:]
        failed = fused_moe(out.ctypes.data, *(array.ctypes.data for array in arrays), case.rows, used, hidden, width)
        if failed:
            raise RuntimeError(f"fused_moe returned {failed}")
        return out

    return run


if __name__ == "__main__":
    report = moe_diag.check_kernel(kernel(sys.argv[2]), sys.argv[1], check=False)
    print(report.text, end="")
    sys.exit(0 if report else 1)
