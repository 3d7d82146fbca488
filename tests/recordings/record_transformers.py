#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Loads a GGUF file of Qwen3-MoE into transformers, and records it: sound, or with a mistake patched in.

    PYTHONPATH=apps/python python3 tests/recordings/record_transformers.py model.gguf out --dtype bf16 --mode graph --bug swap

Needs torch, transformers and gguf. Weights are decoded by the gguf package, so that the recording and the file have nothing
of moe-diag in common. Mistakes are those of one layer: `swap` (gate and up of one expert), `norenorm` (its router does not
divide by the sum), `expert5` (one expert's down matrix is 5 % too large on a quarter of its rows).
"""

import argparse
import json
import pathlib
import sys

import gguf
import numpy
import torch
import transformers
from moe_diag import record

NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "ffn_gate_inp": "mlp.gate",
}  # fmt: skip


def field(reader, key, default=None):
    found = reader.fields.get(f"{gguf_architecture(reader)}.{key}")
    return default if found is None else found.contents()


def gguf_architecture(reader):
    return reader.fields["general.architecture"].contents()


def tensors(reader):
    return {t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(numpy.float32) for t in reader.tensors}


def config_of(reader, weights):
    vocab, hidden = weights["token_embd.weight"].shape
    return transformers.Qwen3MoeConfig(
        vocab_size=vocab, hidden_size=hidden, num_hidden_layers=field(reader, "block_count"),
        num_attention_heads=field(reader, "attention.head_count"),
        num_key_value_heads=field(reader, "attention.head_count_kv"), head_dim=field(reader, "attention.key_length"),
        num_experts=field(reader, "expert_count"), num_experts_per_tok=field(reader, "expert_used_count"),
        moe_intermediate_size=field(reader, "expert_feed_forward_length"),
        rms_norm_eps=field(reader, "attention.layer_norm_rms_epsilon"), rope_theta=field(reader, "rope.freq_base"),
        norm_topk_prob=True, tie_word_embeddings="output.weight" not in weights, mlp_only_layers=[],
        decoder_sparse_step=1, max_position_embeddings=4096, attention_bias=False,
    )  # fmt: skip


def layer_state(weights, layer, fused):
    state = {}
    for name, module in NAMES.items():
        state[f"{module}.weight"] = weights[f"blk.{layer}.{name}.weight"]
    gate, up, down = (weights[f"blk.{layer}.ffn_{part}_exps.weight"] for part in ("gate", "up", "down"))
    if fused:
        state["mlp.experts.gate_up_proj"] = numpy.concatenate([gate, up], axis=1)
        state["mlp.experts.down_proj"] = down
        return state
    for expert in range(len(gate)):
        for part, values in (("gate_proj", gate), ("up_proj", up), ("down_proj", down)):
            state[f"mlp.experts.{expert}.{part}.weight"] = values[expert]
    return state


def load(path, dtype, device):
    reader = gguf.GGUFReader(path)
    weights = tensors(reader)
    model = transformers.Qwen3MoeForCausalLM(config_of(reader, weights))
    fused = any("experts.gate_up_proj" in name for name, _ in model.named_parameters())
    state = {"model.embed_tokens.weight": weights["token_embd.weight"], "model.norm.weight": weights["output_norm.weight"],
             "lm_head.weight": weights.get("output.weight", weights["token_embd.weight"])}  # fmt: skip
    for layer in range(model.config.num_hidden_layers):
        for name, value in layer_state(weights, layer, fused).items():
            state[f"model.layers.{layer}.{name}"] = value
    missing, unexpected = model.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in state.items()}, strict=False)
    if missing or unexpected:
        sys.exit(f"{path}: missing {missing}, unexpected {unexpected}")
    return model.to(device, dtype).eval()


def plant(model, bug, layer, expert):
    mlp = model.model.layers[layer].mlp
    with torch.no_grad():
        if bug == "norenorm":
            for owner in (mlp, mlp.gate):
                if hasattr(owner, "norm_topk_prob"):
                    owner.norm_topk_prob = False
        elif hasattr(mlp.experts, "gate_up_proj"):
            width = mlp.experts.gate_up_proj.shape[1] // 2
            if bug == "swap":
                mlp.experts.gate_up_proj[expert] = mlp.experts.gate_up_proj[expert].roll(width, 0)
            elif bug == "expert5":
                mlp.experts.down_proj[expert, : mlp.experts.down_proj.shape[1] // 4] *= 1.05
        else:
            own = mlp.experts[expert]
            if bug == "swap":
                own.gate_proj, own.up_proj = own.up_proj, own.gate_proj
            elif bug == "expert5":
                own.down_proj.weight[: own.down_proj.weight.shape[0] // 4] *= 1.05


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--dtype", choices=["f32", "bf16", "f16"], default="f32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--mode", choices=["eager", "compile", "graph"], default="eager")
    parser.add_argument("--bug", choices=["none", "swap", "norenorm", "expert5"], default="none")
    parser.add_argument("--layer", type=int, default=1)
    parser.add_argument("--expert", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--ids", type=json.loads, help="token ids as a JSON list")
    parser.add_argument("--chunk", type=int)
    parser.add_argument("--new", type=int, default=0, help="tokens generated behind the prompt")
    parser.add_argument("--stages", nargs="*")
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[options.dtype]
    model = load(options.gguf, dtype, options.device)
    if options.mode != "eager" and hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("batched_mm")
    plant(model, options.bug, options.layer, options.expert)
    ids = options.ids or [(i * 37 + 3) % model.config.vocab_size for i in range(options.tokens)]
    recording = record(model, ids, options.out, mode=options.mode, chunk=options.chunk, max_new_tokens=options.new,
                       stages=options.stages)  # fmt: skip
    print(recording)


if __name__ == "__main__":
    main()
