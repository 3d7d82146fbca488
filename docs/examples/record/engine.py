# SPDX-License-Identifier: MIT
"""An engine in Python that records itself: what engine.c does, two calls of a prompt and three stages.

    python3 engine.py dump      needs the package moe_diag
"""
import sys

import numpy as np

import moe_diag


def run_layer(layer, rows):
    """Stands for a layer of your engine: its output, here as bits of bf16, and the experts that it chose."""
    moe_ffn_out = (0x3F80 + 16 * layer + np.arange(rows * 8)).astype(np.uint16).reshape(rows, 8)
    return moe_ffn_out, np.tile(np.arange(3, dtype=np.int32) + layer, (rows, 1))


def run(path):
    with moe_diag.Recorder(path, engine="my port 0.3", numerics="bf16", stored="bf16") as recorder:
        for tokens in ([5, 6, 7], [8]):
            with recorder.call(tokens=tokens, mode="eager") as call:
                for layer in range(2):
                    moe_ffn_out, ids = run_layer(layer, len(tokens))
                    call("moe_router_indices", layer, ids)
                    call("moe_ffn_out", layer, moe_ffn_out, dtype="bf16")
                logits = tokens[-1] + np.arange(11, dtype=np.float32)
                call("lm_head", None, logits[None], last=1)  # of the last row only


if __name__ == "__main__":
    run(sys.argv[1])
    print(moe_diag.open_dump(sys.argv[1]))
