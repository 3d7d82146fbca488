# SPDX-License-Identifier: MIT
"""Writes what wrong kernels give: mistakes that kernels have had, each written here in numpy as such a kernel computes.

    python3 make_kernels.py [folder]      needs numpy and gguf; reads ../hf

Each kernel is one step of a model of ../hf. It reads what Hugging Face computed before that step, as float32, and the
weights out of the GGUF file, and it computes in float32. Nothing of moe-diag takes part.

kernels.bin holds the outputs one after the other (float32, little-endian), kernels.json per kernel: what is wrong with it,
model, stage and layer, the cause that it may be given beside `operator`, shape and offset.
"""
import json
import pathlib
import sys

import gguf
import numpy as np

HF = pathlib.Path(__file__).resolve().parent.parent / "hf"
f32 = np.float32


class Model:
    def __init__(self, name: str):
        self.name = name
        reader = gguf.GGUFReader(HF / f"{name}.gguf")
        self.tensors = {t.name: t for t in reader.tensors}
        index = json.loads((HF / f"{name}.json").read_text())
        self.config = index["config"]
        raw = (HF / f"{name}.bin").read_bytes()
        self.stages = {}
        for entry in index["tensors"]:
            dtype = {"f64": "<f8", "i32": "<i4"}[entry["dtype"]]
            count = int(np.prod(entry["shape"]))
            values = np.frombuffer(raw, dtype, count, entry["offset"]).reshape(entry["shape"])
            self.stages[entry["stage"], entry["layer"]] = values

    def at(self, stage: str, layer: int) -> np.ndarray:
        values = self.stages[stage, layer]
        return values if values.dtype == np.int32 else values.astype(f32)

    def weight(self, name: str) -> np.ndarray:
        tensor = self.tensors[f"{name}.weight"]
        dense = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(f32)
        return dense.reshape(tuple(reversed(tensor.shape.tolist())))

    def raw(self, name: str) -> np.ndarray:
        return self.tensors[f"{name}.weight"].data


def experts(m: Model, layer: int, weight: str, x: np.ndarray, product) -> np.ndarray:
    """[rows, used, out] of each row's experts; x is [rows, in] or [rows, used, in]."""
    w = m.weight(f"blk.{layer}.{weight}")
    ids = m.at("moe_router_indices", layer)
    out = np.zeros((*ids.shape, w.shape[1]), f32)
    for row, slot in np.ndindex(*ids.shape):
        out[row, slot] = product(w[ids[row, slot]], x[row] if x.ndim == 2 else x[row, slot])
    return out


def tail_dropped(m: Model, layer: int) -> np.ndarray:
    """The loop over k goes in steps of 8 and ends before the rest: f is 20."""
    def product(w, x):
        acc = np.zeros(len(w), f32)
        for k in range(0, len(x) // 8 * 8, 8):
            acc += w[:, k : k + 8] @ x[k : k + 8]
        return acc

    return experts(m, layer, "ffn_down_exps", m.at("moe_expert_swiglu", layer), product)


def first_warp_only(m: Model, layer: int) -> np.ndarray:
    """Four warps sum interleaved chunks of 8; the block's reduction keeps the first one's sum."""
    w, x = m.weight(f"blk.{layer}.attn_output"), m.at("attention", layer)
    mine = (np.arange(w.shape[1]) // 8) % 4 == 0
    return (x * mine) @ w.T


def tile_border(m: Model, layer: int) -> np.ndarray:
    """Tiles of 16 outputs. The last one is moved back to end with the matrix, and is stored where it would have begun."""
    w, x = m.weight(f"blk.{layer}.ffn_down_exps"), m.at("moe_expert_swiglu", layer)

    def product(w, x):
        y, n = np.zeros(len(w), f32), len(w)
        for first in range(0, n, 16):
            begin = min(first, n - 16)
            tile = w[begin : begin + 16] @ x
            y[first : first + 16] = tile[: n - first]
        return y

    return experts(m, layer, "ffn_down_exps", x, product)


def softmax_overflows(m: Model, layer: int) -> np.ndarray:
    """exp in f16 without the largest subtracted, in the base that makes it one instruction: 2^(x log2 e * 8), by a factor
    that was folded into the scores once too often. Beyond 65504 it is Inf, and Inf / Inf is NaN."""
    scores = m.at("attn_scores", layer)
    out = np.zeros_like(scores)
    with np.errstate(all="ignore"):
        for row in range(len(scores)):
            e = np.exp(scores[row, :, : row + 1] * f32(64)).astype(np.float16)
            out[row, :, : row + 1] = e / e.sum(axis=-1, keepdims=True, dtype=np.float16)
    return out


def rope_interleaved(m: Model, layer: int) -> np.ndarray:
    """Rotates neighbours, as GPT-J does, instead of halves."""
    x = m.at("q_norm", layer)
    h = x.shape[-1]
    out = np.empty_like(x)
    for row in range(len(x)):
        angle = row * m.config["theta"] ** (-2.0 * np.arange(h // 2) / h)
        c, s = np.cos(angle).astype(f32), np.sin(angle).astype(f32)
        out[row, :, 0::2] = x[row, :, 0::2] * c - x[row, :, 1::2] * s
        out[row, :, 1::2] = x[row, :, 1::2] * c + x[row, :, 0::2] * s
    return out


def gather_next_row(m: Model, layer: int) -> np.ndarray:
    """Rows are sorted by expert and gathered through an index that is off by one: each computes with the row after it."""
    x = m.at("ffn_norm", layer)
    return experts(m, layer, "ffn_gate_exps", x[(np.arange(len(x)) + 1) % len(x)], lambda w, x: w @ x)


def unsigned_quants(m: Model, layer: int) -> np.ndarray:
    """The int8 values of Q8_0 are loaded as uint8 and not converted."""
    raw = m.raw(f"blk.{layer}.ffn_down_exps").reshape(m.config["experts"], m.config["hidden"], -1, 34)
    d = np.ascontiguousarray(raw[..., :2]).view("<f2").astype(f32)
    w = (d * raw[..., 2:].astype(f32)).reshape(m.config["experts"], m.config["hidden"], -1)
    ids, x = m.at("moe_router_indices", layer), m.at("moe_expert_swiglu", layer)
    out = np.zeros((*ids.shape, m.config["hidden"]), f32)
    for row, slot in np.ndindex(*ids.shape):
        out[row, slot] = w[ids[row, slot]] @ x[row, slot]
    return out


def norm_by_32_threads(m: Model, layer: int) -> np.ndarray:
    """A block of 32 threads adds the squares of the first 32 of 36 values."""
    x, w = m.at("post_attn_residual", layer), m.weight(f"blk.{layer}.ffn_norm")
    squares = (x[:, :32] ** 2).sum(axis=1, keepdims=True, dtype=f32)
    return x / np.sqrt(squares / f32(x.shape[1]) + f32(m.config["eps"])) * w


def kv_head_in_turn(m: Model, layer: int) -> np.ndarray:
    """Query head j reads kv head j mod Hk instead of j / (Hq / Hk)."""
    q, k = m.at("q_post_rope", layer), m.at("k_post_rope", layer)
    rows, heads, h = q.shape
    out = np.zeros((rows, heads, rows), f32)
    for row, head in np.ndindex(rows, heads):
        out[row, head, : row + 1] = k[: row + 1, head % k.shape[1]] @ q[row, head] / f32(np.sqrt(h))
    return out


def causal_off_by_one(m: Model, layer: int) -> np.ndarray:
    """The mask compares with < where it should with <=: from the second row on, the own key is not seen."""
    scores = m.at("attn_scores", layer)
    out = np.zeros_like(scores)
    for row in range(len(scores)):
        seen = max(row, 1)
        e = np.exp(scores[row, :, :seen] - scores[row, :, :seen].max(axis=-1, keepdims=True))
        out[row, :, :seen] = e / e.sum(axis=-1, keepdims=True)
    return out


def f16_accumulator(m: Model, layer: int) -> np.ndarray:
    """Sums kept in f16 along k."""
    def product(w, x):
        acc = np.zeros(len(w), np.float16)
        for k in range(len(x)):
            acc = (acc.astype(f32) + w[:, k] * x[k]).astype(np.float16)
        return acc.astype(f32)

    return experts(m, layer, "ffn_up_exps", m.at("ffn_norm", layer), product)


def gate_twice(m: Model, layer: int) -> np.ndarray:
    """The fused activation reads the gate's pointer for both operands."""
    g = m.at("moe_expert_gate", layer)
    return g / (1 + np.exp(-g)) * g


def last_slot_missing(m: Model, layer: int) -> np.ndarray:
    """The loop over slots ends one too early."""
    return m.at("moe_expert_weighted", layer)[:, :-1].sum(axis=1, dtype=f32)


def not_renormalised(m: Model, layer: int) -> np.ndarray:
    """norm_topk_prob was not read."""
    probs, ids = m.at("moe_router_probs", layer), m.at("moe_router_indices", layer)
    return np.take_along_axis(probs, ids.astype(np.int64), axis=1)


# Model, stage, layer, kernel, and the cause that is right; empty: there is none, it is an operator.
KERNELS = [
    ("odd_widths", "moe_expert_out", 1, tail_dropped, "partial_sum"),
    ("odd_widths", "moe_expert_out", 0, tile_border, ""),
    ("odd_widths", "ffn_norm", 1, norm_by_32_threads, ""),
    ("odd_widths", "moe_expert_gate", 0, gather_next_row, ""),
    ("mixed_types", "moe_expert_out", 1, unsigned_quants, ""),
    ("mixed_types", "moe_expert_up", 2, f16_accumulator, "accumulation"),
    ("mixed_types", "attn_scores", 1, kv_head_in_turn, "permutation"),
    ("forty_tokens", "attn_softmax", 1, softmax_overflows, ""),
    ("forty_tokens", "attn_softmax", 0, causal_off_by_one, "shifted_position"),
    ("forty_tokens", "q_post_rope", 1, rope_interleaved, "permutation"),
    ("equal_heads", "attn_out", 0, first_warp_only, "partial_sum"),
    ("equal_heads", "moe_expert_swiglu", 1, gate_twice, ""),
    ("equal_heads", "moe_ffn_out", 1, last_slot_missing, "dropped_expert"),
    ("equal_heads", "moe_router_weights", 0, not_renormalised, "skipped"),
]


def main() -> None:
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).parent
    models, index, raw = {}, [], b""
    for name, stage, layer, kernel, cause in KERNELS:
        m = models.setdefault(name, Model(name))
        out = np.ascontiguousarray(kernel(m, layer).astype("<f4"))
        assert out.shape == m.stages[stage, layer].shape, (kernel.__name__, out.shape)
        index.append({
            "kernel": kernel.__name__, "model": name, "stage": stage, "layer": layer, "cause": cause,
            "shape": list(out.shape), "offset": len(raw),
        })
        raw += out.tobytes()
    (folder / "kernels.bin").write_bytes(raw)
    lines = ",\n  ".join(json.dumps(entry) for entry in index)
    (folder / "kernels.json").write_text(f'{{"kernels": [\n  {lines}\n]}}\n')


if __name__ == "__main__":
    main()
