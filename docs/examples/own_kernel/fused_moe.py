# SPDX-License-Identifier: MIT
"""The test of a kernel: a fused MoE in numpy, judged on every case of a folder that `moe-diag cases` wrote.

    python3 fused_moe.py FOLDER [off-by-one | below-16]      needs the package moe_diag
"""
import sys

import numpy as np

import moe_diag


def fused_moe(x, ids, scale, gate, up, down):
    """Stands for your kernel: x is [rows, hidden], ids and scale are [rows, used], the weights [experts, ...]."""
    out = np.zeros_like(x)
    for row in range(x.shape[0]):
        for slot, expert in enumerate(ids[row]):
            g, u = gate[expert] @ x[row], up[expert] @ x[row]
            out[row] += scale[row, slot] * (down[expert] @ (g / (1 + np.exp(-g)) * u))
    return out


def kernel(mistake=""):
    """The function that check_kernel calls, right or with a mistake."""

    def run(case):
        x, ids, scale = (case.inputs[name] for name in ("ffn_norm", "moe_router_indices", "moe_router_weights"))
        gate, up, down = (case.weights[name] for name in ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"))
        if mistake == "off-by-one":
            ids = (ids + 1) % len(gate)
        if mistake == "below-16" and case.rows < 16:  # a path for few rows that forgets the last columns of a block
            down = down.copy()
            down[:, :, -16:] = 0
        return fused_moe(x, ids, scale, gate, up, down)

    return run


if __name__ == "__main__":
    report = moe_diag.check_kernel(kernel(*sys.argv[2:]), sys.argv[1], check=False)
    print(report.text, end="")
    sys.exit(0 if report else 1)
