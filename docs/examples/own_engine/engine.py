# SPDX-License-Identifier: MIT
"""An engine of Qwen3-MoE in numpy that records itself: right, or with a mistake.

    python3 engine.py MODEL.gguf DUMP [right | swap | no-renorm | below-16 [STAGE...]]

needs gguf, numpy and the package moe_diag. With stages, only these are recorded.
"""
import sys

import gguf
import numpy as np

import moe_diag

PROMPT = [3, 141, 59, 26, 53, 58, 97, 93, 238, 462, 64, 5, 77, 301, 12, 9, 88, 411, 17, 200]


class Engine:
    def __init__(self, path, mistake="right"):
        reader = gguf.GGUFReader(path)
        self.weights = {t.name.removesuffix(".weight"): gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}
        self.mistake, self.cache = mistake, {}
        number = lambda key: reader.fields[f"qwen3moe.{key}"].contents()  # noqa: E731
        self.layers, self.used = number("block_count"), number("expert_used_count")
        self.heads, self.size = number("attention.head_count"), number("attention.key_length")
        self.eps, self.base = np.float32(number("attention.layer_norm_rms_epsilon")), number("rope.freq_base")

    def norm(self, x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps) * self.weights[name]

    def rope(self, x, at):
        angle = (at[:, None] * self.base ** (-2 * np.arange(self.size // 2) / self.size))[:, None]
        (a, b), cos, sin = np.split(x, 2, -1), np.cos(angle).astype("f4"), np.sin(angle).astype("f4")
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def attention(self, b, x, at):
        q, k, v = ((x @ self.weights[f"{b}attn_{part}"].T).reshape(len(x), -1, self.size) for part in "qkv")
        q, k = self.rope(self.norm(q, b + "attn_q_norm"), at), self.rope(self.norm(k, b + "attn_k_norm"), at)
        k, v = self.cache[b] = [np.concatenate(pair) for pair in zip(self.cache.get(b, (k[:0], v[:0])), (k, v))]
        k, v = (np.repeat(part, self.heads // part.shape[1], 1) for part in (k, v))
        scores = np.einsum("thd,shd->hts", q, k) / np.float32(self.size**0.5)
        probs = softmax(np.where(np.arange(len(k)) <= at[:, None], scores, -np.inf))
        return np.einsum("hts,shd->thd", probs, v).reshape(len(x), -1) @ self.weights[b + "attn_output"].T

    def experts(self, b, x, layer, put):
        logits = put("moe_router_logits", layer, x @ self.weights[b + "ffn_gate_inp"].T)
        probs = put("moe_router_probs", layer, softmax(logits))
        ids = put("moe_router_indices", layer, np.argsort(-probs, kind="stable")[:, : self.used].astype("i4"))
        share = np.take_along_axis(probs, ids, -1)
        if self.mistake != "no-renorm":
            share = share / share.sum(-1, keepdims=True)
        share = put("moe_router_weights", layer, share)
        gate, up, down = (self.weights[f"{b}ffn_{part}_exps"] for part in ("gate", "up", "down"))
        if self.mistake == "swap" and layer == 2:  # one fused tensor of both, whose halves are read in the wrong order
            gate, up = up, gate
        if self.mistake == "below-16" and layer == 1 and len(x) < 16:  # a kernel for few rows forgets the last block
            down = np.where(np.arange(down.shape[-1]) < down.shape[-1] - 32, down, np.float32(0))
        g = put("moe_expert_gate", layer, np.einsum("td,tkfd->tkf", x, gate[ids]))
        u = put("moe_expert_up", layer, np.einsum("td,tkfd->tkf", x, up[ids]))
        act = put("moe_expert_swiglu", layer, g / (1 + np.exp(-g)) * u)
        out = put("moe_expert_out", layer, np.einsum("tkf,tkdf->tkd", act, down[ids]))
        return put("moe_ffn_out", layer, (share[..., None] * out).sum(1))

    def forward(self, tokens, first, put):
        at, x = first + np.arange(len(tokens)), put("embedding", None, self.weights["token_embd"][tokens])
        for layer in range(self.layers):
            b = f"blk.{layer}."
            h = put("attn_norm", layer, self.norm(x, b + "attn_norm"))
            x = put("post_attn_residual", layer, x + self.attention(b, h, at))
            h = put("ffn_norm", layer, self.norm(x, b + "ffn_norm"))
            x = put("post_ffn_residual", layer, x + self.experts(b, h, layer, put))
        return put("lm_head", None, put("final_norm", None, self.norm(x, "output_norm")) @ self.weights["output"].T)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def run(model, dump, mistake="right", *stages):
    engine, tokens, first = Engine(model, mistake), PROMPT, 0
    with moe_diag.Recorder(dump, engine="numpy engine 0.1", stages=stages or None) as recorder:
        while first < len(PROMPT) + 3:  # the prompt in one call, then three tokens one by one
            with recorder.call(tokens=tokens) as call:

                def put(stage, layer, array):
                    call(stage, layer, array)
                    return array

                logits = engine.forward(tokens, first, put)
            first, tokens = first + len(tokens), [int(logits[-1].argmax())]


if __name__ == "__main__":
    run(*sys.argv[1:])
