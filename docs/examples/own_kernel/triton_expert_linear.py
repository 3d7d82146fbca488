# SPDX-License-Identifier: MIT
"""An expert matmul in Triton, bf16 with sums in f32, judged on the cases of one step:

    moe-diag cases MODEL --span moe_expert_gate --numerics bf16 --rows 1,7,16,64,257 --out cases
    python3 triton_expert_linear.py cases [below-16]         needs moe_diag, torch, triton and a GPU

With `below-16` a path for few rows forgets the last block of the sum.
"""
import sys

import torch
import triton
import triton.language as tl

import moe_diag

BLOCK_N, BLOCK_K = 64, 64


@triton.jit
def slot_kernel(out, x, ids, weight, slots, outputs, columns, summed, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """One program for BLOCK_N outputs of one slot of one row."""
    slot = tl.program_id(0)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    expert = tl.load(ids + slot).to(tl.int64)
    row = slot // slots
    sums = tl.zeros((BLOCK_N,), tl.float32)
    for first in range(0, summed, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        values = tl.load(x + row * columns + k, mask=k < summed, other=0.0).to(tl.float32)
        at = expert * outputs * columns + n[:, None] * columns + k[None, :]
        block = tl.load(weight + at, mask=(n < outputs)[:, None] & (k < summed)[None, :], other=0.0).to(tl.float32)
        sums += tl.sum(block * values[None, :], axis=1)
    tl.store(out + slot.to(tl.int64) * outputs + n, sums.to(tl.bfloat16), mask=n < outputs)


def expert_linear(x, ids, weight, summed):
    """out[row, slot] = weight[ids[row, slot]] @ x[row]: x is [rows, columns], weight [experts, outputs, columns], in bf16."""
    rows, columns = x.shape
    slots, outputs = ids.shape[1], weight.shape[1]
    out = torch.empty(rows, slots, outputs, dtype=torch.bfloat16, device=x.device)
    grid = (rows * slots, triton.cdiv(outputs, BLOCK_N))
    slot_kernel[grid](out, x, ids, weight, slots, outputs, columns, summed, BLOCK_N=BLOCK_N, BLOCK_K=BLOCK_K)
    return out


def kernel(mistake=""):
    """The function that check_kernel calls, right or with a mistake."""

    def run(case):
        x, ids = case.inputs["ffn_norm"].to(torch.bfloat16), case.inputs["moe_router_indices"]
        weight = case.weights["ffn_gate_exps"].to(torch.bfloat16).contiguous()
        columns = x.shape[1]
        is_wrong = mistake == "below-16" and case.rows < 16
        return expert_linear(x.contiguous(), ids.contiguous(), weight, columns - BLOCK_K if is_wrong else columns)

    return run


def main(folder, mistake="", device="cuda"):
    report = moe_diag.check_kernel(kernel(mistake), folder, arrays="torch", device=device, check=False)
    print(report.text, end="")
    return 0 if report else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
