# SPDX-License-Identifier: MIT
"""Writes tiny Qwen3-MoE and Qwen2-MoE models and what Hugging Face computes for them in float64.

For each configuration: NAME.gguf (the model), NAME.bin (every stage, layer and position) and NAME.json (the index
of NAME.bin). README.md beside this file says how to run it and what the files hold.
"""
import argparse
import contextlib
import dataclasses
import fnmatch
import importlib.metadata
import inspect
import json
import pathlib
import sys
import textwrap
import traceback
import types
from collections.abc import Callable
from typing import ClassVar, NamedTuple
from unittest import mock

import gguf
import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.models.qwen2_moe import modeling_qwen2_moe
from transformers.models.qwen3_moe import modeling_qwen3_moe

PINNED = {"transformers": "5.17.0", "torch": "2.11.0", "numpy": "2.5.2", "gguf": "0.19.0"}

# ---------------------------------------------------------------------------------------------------- architectures
# Shapes are written in the letters of README.md; Config.sizes gives their values.


class Weight(NamedTuple):
    """A tensor of a layer. HF concatenates tensors with the same HF name along dimension 1, in table order."""

    hf: str
    draw: Callable[[np.random.RandomState, tuple[int, ...]], np.ndarray]
    shape: str
    hf_shape: str = ""  # if HF's shape differs


class Stage(NamedTuple):
    """A stage of a layer. shown: "in MODULE" or "out MODULE" where a hook on HF's module sees it, else ""."""

    row: str
    shown: str = ""


class Cast(NamedTuple):
    """An HF function that casts to float32. texts: the source text of each cast, and how often it occurs."""

    owner: str  # class without the architecture's prefix, "" for the module
    function: str
    texts: dict[str, int]


@dataclasses.dataclass(frozen=True)
class Architecture:
    name: str  # as general.architecture has it
    hf: types.ModuleType
    prefix: str  # of the names of its classes
    weights: dict[str, Weight]  # of a layer, by GGUF name, in the order in which they are drawn and stored
    stages: dict[str, Stage]  # of a layer, in forward order
    casts: list[Cast]
    unshown: Callable[[dict, int], dict[str, torch.Tensor]]  # stages of a layer, from what its modules have shown

    def hf_class(self, name: str) -> type:
        return getattr(self.hf, self.prefix + name)


def norm(random, shape):
    return random.uniform(0.4, 1.8, shape)


def bias(random, shape):
    return random.standard_normal(shape)


def linear(gain):
    return lambda random, shape: random.standard_normal(shape) * gain / np.sqrt(shape[-1])


QKV_WEIGHTS = {
    "attn_norm.weight": Weight("input_layernorm.weight", norm, "d"),
    "attn_q.weight": Weight("self_attn.q_proj.weight", linear(1.2), "q d"),
    "attn_k.weight": Weight("self_attn.k_proj.weight", linear(1.2), "kv d"),
    "attn_v.weight": Weight("self_attn.v_proj.weight", linear(1.2), "kv d"),
}
QK_NORM_WEIGHTS = {
    "attn_q_norm.weight": Weight("self_attn.q_norm.weight", norm, "h"),
    "attn_k_norm.weight": Weight("self_attn.k_norm.weight", norm, "h"),
}
QKV_BIASES = {
    "attn_q.bias": Weight("self_attn.q_proj.bias", bias, "q"),
    "attn_k.bias": Weight("self_attn.k_proj.bias", bias, "kv"),
    "attn_v.bias": Weight("self_attn.v_proj.bias", bias, "kv"),
}
OUT_AND_EXPERT_WEIGHTS = {
    "attn_output.weight": Weight("self_attn.o_proj.weight", linear(1.2), "d q"),
    "ffn_norm.weight": Weight("post_attention_layernorm.weight", norm, "d"),
    "ffn_gate_inp.weight": Weight("mlp.gate.weight", linear(2.0), "E d"),
    "ffn_gate_exps.weight": Weight("mlp.experts.gate_up_proj", linear(1.5), "E f d"),
    "ffn_up_exps.weight": Weight("mlp.experts.gate_up_proj", linear(1.5), "E f d"),
    "ffn_down_exps.weight": Weight("mlp.experts.down_proj", linear(1.5), "E d f"),
}
SHARED_EXPERT_WEIGHTS = {
    "ffn_gate_inp_shexp.weight": Weight("mlp.shared_expert_gate.weight", linear(2.0), "d", hf_shape="1 d"),
    "ffn_gate_shexp.weight": Weight("mlp.shared_expert.gate_proj.weight", linear(1.5), "fs d"),
    "ffn_up_shexp.weight": Weight("mlp.shared_expert.up_proj.weight", linear(1.5), "fs d"),
    "ffn_down_shexp.weight": Weight("mlp.shared_expert.down_proj.weight", linear(1.5), "d fs"),
}

QKV_STAGES = {
    "attn_norm": Stage("d", "out input_layernorm"),
    "qkv_matmul": Stage("qkv"),
}
QK_NORM_STAGES = {
    "q_norm": Stage("Hq h", "out self_attn.q_norm"),
    "k_norm": Stage("Hk h", "out self_attn.k_norm"),
}
ATTENTION_AND_EXPERT_STAGES = {
    "q_post_rope": Stage("Hq h"),
    "k_post_rope": Stage("Hk h"),
    "attn_scores": Stage("Hq T"),
    "attn_softmax": Stage("Hq T"),
    "attention": Stage("q", "in self_attn.o_proj"),
    "attn_out": Stage("d", "out self_attn.o_proj"),
    "post_attn_residual": Stage("d", "in post_attention_layernorm"),
    "ffn_norm": Stage("d", "out post_attention_layernorm"),
    "moe_router_logits": Stage("E"),
    "moe_router_probs": Stage("E"),
    "moe_router_indices": Stage("k"),
    "moe_router_weights": Stage("k"),
    "moe_expert_gate": Stage("k f"),
    "moe_expert_up": Stage("k f"),
    "moe_expert_swiglu": Stage("k f"),
    "moe_expert_out": Stage("k d"),
    "moe_expert_weighted": Stage("k d"),
    "moe_ffn_out": Stage("d", "out mlp.experts"),
}
SHARED_EXPERT_STAGES = {
    "moe_shared_gate": Stage("fs", "out mlp.shared_expert.gate_proj"),
    "moe_shared_up": Stage("fs", "out mlp.shared_expert.up_proj"),
    "moe_shared_swiglu": Stage("fs", "in mlp.shared_expert.down_proj"),
    "moe_shared_out": Stage("d", "out mlp.shared_expert"),
    "moe_shared_logit": Stage("1", "out mlp.shared_expert_gate"),
    "moe_shared_weighted": Stage("d"),
    "ffn_out": Stage("d", "out mlp"),
}
RESIDUAL_STAGE = {"post_ffn_residual": Stage("d", "out ")}  # of the layer itself
MODEL_WIDE_FIRST = {"embedding": Stage("d")}
MODEL_WIDE_LAST = {"final_norm": Stage("d"), "lm_head": Stage("V")}

CASTS = [
    Cast("RMSNorm", "forward", {"torch.float32": 1}),
    Cast("", "eager_attention_forward", {"torch.float32": 1}),
    Cast("TopKRouter", "forward", {"dtype=torch.float,": 1}),
    Cast("RotaryEmbedding", "compute_default_rope_parameters", {"dtype=torch.float)": 1}),
]


def gated_shared_expert(seen: dict, n: int) -> dict[str, torch.Tensor]:
    """HF applies the gate inside its MoE block: recompute it, and require the block's own output bit for bit."""
    weighted = torch.sigmoid(seen["moe_shared_logit", n]) * seen["moe_shared_out", n]
    assert torch.equal(seen["moe_ffn_out", n] + weighted, seen["ffn_out", n]), f"the shared expert of layer {n}"
    return {"moe_shared_weighted": weighted}


QWEN3MOE = Architecture(
    name="qwen3moe",
    hf=modeling_qwen3_moe,
    prefix="Qwen3Moe",
    weights=QKV_WEIGHTS | QK_NORM_WEIGHTS | OUT_AND_EXPERT_WEIGHTS,
    stages=QKV_STAGES | QK_NORM_STAGES | ATTENTION_AND_EXPERT_STAGES | RESIDUAL_STAGE,
    casts=[*CASTS, Cast("RotaryEmbedding", "forward", {"dtype=torch.float,": 1, ".float()": 1})],
    unshown=lambda seen, n: {},
)
QWEN2MOE = Architecture(
    name="qwen2moe",
    hf=modeling_qwen2_moe,
    prefix="Qwen2Moe",
    weights=QKV_WEIGHTS | QKV_BIASES | OUT_AND_EXPERT_WEIGHTS | SHARED_EXPERT_WEIGHTS,
    stages=QKV_STAGES | ATTENTION_AND_EXPERT_STAGES | SHARED_EXPERT_STAGES | RESIDUAL_STAGE,
    casts=[*CASTS, Cast("RotaryEmbedding", "forward", {".float()": 4})],
    unshown=gated_shared_expert,
)

# --------------------------------------------------------------------------------------------------- configurations


@dataclasses.dataclass(frozen=True)
class Config:
    arch: ClassVar[Architecture]
    name: str
    seed: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    used: int
    expert_width: int | tuple[int, ...]  # a tuple has one for each layer
    vocab: int
    tied: bool
    theta: float
    eps: float
    prompt: int
    types: dict[str, str]  # GGUF tensor name pattern -> type, the last match wins
    alignment: int = gguf.GGUF_DEFAULT_ALIGNMENT

    @property
    def stored_eps(self) -> float:
        """GGUF keeps it as f32, so that rounded value is the model's."""
        return float(np.float32(self.eps))

    @property
    def stored_theta(self) -> float:
        return float(np.float32(self.theta))

    @property
    def dense_width(self) -> int:
        """Written because loaders ask for it; no layer here is dense."""
        return 3 * self.hidden

    def width_in(self, layer: int) -> int:
        return self.expert_width[layer] if isinstance(self.expert_width, tuple) else self.expert_width

    def sizes(self, layer: int) -> dict[str, int]:
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        heads = {"Hq": self.heads, "Hk": self.kv_heads, "h": self.head_dim, "q": q, "kv": kv, "qkv": q + 2 * kv}
        experts = {"E": self.experts, "k": self.used, "f": self.width_in(layer)}
        return {"T": self.prompt, "d": self.hidden, "V": self.vocab, "1": 1} | heads | experts

    def shape(self, letters: str, layer: int | None) -> tuple[int, ...]:
        sizes = self.sizes(layer or 0)
        return tuple(sizes[letter] for letter in letters.split())

    def layer_weights(self) -> dict[str, Weight]:
        return self.arch.weights

    def keys(self) -> dict[str, int | float | tuple[int, ...]]:
        """Metadata, without the architecture's prefix."""
        return {
            "block_count": self.layers,
            "context_length": 64,
            "embedding_length": self.hidden,
            "feed_forward_length": self.dense_width,
            "attention.head_count": self.heads,
            "attention.head_count_kv": self.kv_heads,
            "attention.key_length": self.head_dim,
            "attention.value_length": self.head_dim,
            "attention.layer_norm_rms_epsilon": self.eps,
            "rope.freq_base": self.theta,
            "expert_count": self.experts,
            "expert_used_count": self.used,
            "expert_feed_forward_length": self.expert_width,
            "vocab_size": self.vocab,
        }

    def hf_options(self) -> dict[str, object]:
        """What HF's configuration has for this architecture alone."""
        raise NotImplementedError


class Qwen3Config(Config):
    arch = QWEN3MOE

    def hf_options(self):
        return {"head_dim": self.head_dim, "norm_topk_prob": True}


HEAD_KEYS = ("attention.key_length", "attention.value_length")
WIDTH_KEYS = ("expert_feed_forward_length", "expert_shared_feed_forward_length")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen2Config(Config):
    """HF has no head_dim option here: a head has hidden / heads values."""

    arch = QWEN2MOE
    shared_width: int
    biased: bool = True
    omitted: tuple[str, ...] = HEAD_KEYS  # keys that the file leaves to their defaults

    @property
    def dense_width(self):
        """The default of the shared width, and used times the default of the expert width."""
        return self.shared_width if set(WIDTH_KEYS) <= set(self.omitted) else super().dense_width

    def sizes(self, layer):
        return super().sizes(layer) | {"fs": self.shared_width}

    def layer_weights(self):
        return {name: w for name, w in super().layer_weights().items() if self.biased or not name.endswith(".bias")}

    def keys(self):
        keys = super().keys() | {"expert_shared_feed_forward_length": self.shared_width}
        return {key: value for key, value in keys.items() if key not in self.omitted}

    def hf_options(self):
        return {
            "shared_expert_intermediate_size": self.shared_width,
            "norm_topk_prob": False,
            "qkv_bias": self.biased,
        }


MIXED = {
    "*": "F16",
    "token_embd.weight": "BF16",
    "output.weight": "Q8_0",
    "blk.*.attn_v.weight": "F32",
    "blk.1.ffn_down_exps.weight": "Q8_0",
    "blk.2.ffn_*_exps.weight": "BF16",
    "blk.3.ffn_gate_exps.weight": "Q8_0",
    "blk.3.attn_q.weight": "Q8_0",
}
MIXED_SHARED = {
    "*": "F16",
    "token_embd.weight": "Q8_0",
    "output.weight": "BF16",
    "blk.*.attn_k.weight": "F32",
    "blk.0.ffn_*_shexp.weight": "Q8_0",
    "blk.1.ffn_*_exps.weight": "Q8_0",
    "blk.1.attn_output.weight": "BF16",
    "blk.2.ffn_down_shexp.weight": "Q8_0",
    "blk.2.ffn_up_shexp.weight": "BF16",
    "blk.2.attn_v.weight": "Q8_0",
}

#                name           seed  L   d  Hq Hk  h   E  k   f   V  tied
CONFIGS = [
    Qwen3Config("one_expert",   101, 2, 24, 2, 2,  8,  1, 1, 16, 33, False, 1e4,     1e-6,  5, {"*": "F32"}),
    Qwen3Config("tied_bf16",    102, 3, 48, 4, 2, 16,  6, 2, 24, 61, True,  1e6,     1e-6,  7, {"*": "BF16"}),
    Qwen3Config("all_experts",  103, 1, 32, 6, 3,  8,  5, 5, 20, 40, False, 12345.0, 1e-5,  6, {"*": "F16"}),
    Qwen3Config("one_token",    104, 4, 40, 4, 1, 16, 12, 4, 14, 97, False, 1e7,     1e-6,  1, {"*": "F16"}),
    Qwen3Config("forty_tokens", 105, 2, 28, 3, 1, 10, 10, 2, 12, 50, True,  1e4,     1e-5, 40, {"*": "BF16"}),
    Qwen3Config("odd_widths",   106, 2, 36, 5, 1,  6,  7, 3, 20, 41, False, 1e6,     1e-6,  9, {"*": "F32"}),
    Qwen3Config("equal_heads",  107, 2, 40, 4, 4, 10,  9, 2, 16, 45, True,  1e4,     1e-6, 11, {"*": "F16"}, 64),
    Qwen3Config("mixed_types",  108, 4, 64, 4, 2, 12,  6, 2, 32, 70, False, 1e6,     1e-6,  3, MIXED),
]
# The seeds avoid gate logits of the shared expert close to 0: there f32 has a large relative error.
#                name                     seed  L   d  Hq Hk  h  E  k   f   V  tied
CONFIGS += [
    Qwen2Config("qwen2moe_one_expert",    201, 2, 16, 2, 2,  8, 1, 1, 12, 23, False, 1e4,     1e-6,  5, {"*": "F32"},
                shared_width=14),
    Qwen2Config("qwen2moe_tied_bf16",     302, 2, 24, 4, 2,  6, 6, 2, 10, 31, True,  1e6,     1e-6,  6, {"*": "BF16"},
                shared_width=20),
    Qwen2Config("qwen2moe_all_experts",   703, 1, 24, 3, 1,  8, 5, 5, 16, 27, False, 12345.0, 1e-5,  6, {"*": "F16"},
                shared_width=12),
    Qwen2Config("qwen2moe_one_token",     204, 3, 20, 5, 1,  4, 8, 4,  7, 37, False, 1e7,     1e-6,  1, {"*": "F16"},
                shared_width=28),
    Qwen2Config("qwen2moe_forty_tokens", 1605, 1, 20, 2, 1, 10, 6, 1,  8, 29, False, 1e4,     1e-5, 40, {"*": "BF16"},
                shared_width=10),
    Qwen2Config("qwen2moe_odd_widths",    206, 2, 30, 5, 1,  6, 5, 3, 13, 25, False, 1e6,     1e-6,  7, {"*": "F32"},
                shared_width=9, omitted=()),
    Qwen2Config("qwen2moe_equal_heads",   807, 2, 24, 4, 4,  6, 7, 2, 10, 33, False, 5e5,     1e-5,  8, {"*": "F16"},
                64, shared_width=16),
    Qwen2Config("qwen2moe_mixed_types",   208, 3, 32, 2, 1, 16, 4, 2, 32, 35, False, 1e6,     1e-6,  3, MIXED_SHARED,
                shared_width=64),
    Qwen2Config("qwen2moe_two_widths",    809, 2, 24, 4, 2,  6, 5, 2, (8, 14), 29, False, 1e6, 1e-6, 7, {"*": "F16"},
                shared_width=18),
    Qwen2Config("qwen2moe_defaults",     1110, 2, 16, 2, 1,  8, 4, 2,  7, 21, False, 1e4,     1e-6,  5, {"*": "F32"},
                shared_width=14, biased=False, omitted=HEAD_KEYS + WIDTH_KEYS),
]


# ---------------------------------------------------------------------------------------------------------- weights


def draw_weights(c: Config) -> dict[str, np.ndarray]:
    """Float64 weights by GGUF name, before rounding to the file's types."""
    # RandomState, because numpy froze its streams: another numpy draws the same model.
    random = np.random.RandomState(c.seed)
    weights = {"token_embd.weight": random.standard_normal((c.vocab, c.hidden))}
    for n in range(c.layers):
        for name, weight in c.layer_weights().items():
            weights[f"blk.{n}.{name}"] = weight.draw(random, c.shape(weight.shape, n))
    weights["output_norm.weight"] = norm(random, (c.hidden,))
    if not c.tied:
        weights["output.weight"] = linear(2.0)(random, (c.vocab, c.hidden))
    return weights


def type_of(c: Config, name: str) -> gguf.GGMLQuantizationType:
    if "norm" in name or "ffn_gate_inp" in name or name.endswith(".bias"):
        return gguf.GGMLQuantizationType.F32
    return gguf.GGMLQuantizationType[[t for pattern, t in c.types.items() if fnmatch.fnmatch(name, pattern)][-1]]


def draw_tokens(c: Config) -> list[int]:
    tokens = np.random.RandomState(c.seed + 1000).randint(0, c.vocab, c.prompt)
    tokens[-1] = c.vocab - 1
    return tokens.tolist()


def write_gguf(c: Config, path: pathlib.Path) -> dict[str, np.ndarray]:
    """Writes the model; returns the weights exactly as the file holds them, in float64."""
    out = gguf.GGUFWriter(path, c.arch.name)
    if c.alignment != gguf.GGUF_DEFAULT_ALIGNMENT:
        out.add_custom_alignment(c.alignment)
    out.add_name(c.name)
    out.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add = {int: out.add_uint32, float: out.add_float32, tuple: out.add_array}
    for key, value in c.keys().items():
        add[type(value)](f"{c.arch.name}.{key}", value)
    out.add_tokenizer_model("none")
    exact = {}
    for name, weight in draw_weights(c).items():
        qtype = type_of(c, name)
        packed = gguf.quants.quantize(weight.astype(np.float32), qtype)
        out.add_tensor(name, packed, raw_dtype=qtype)
        exact[name] = gguf.quants.dequantize(packed, qtype).astype(np.float64)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return exact


# ------------------------------------------------------------------------------------- Hugging Face, all in float64

DOUBLE = {
    "torch.float32": "torch.float64",
    "dtype=torch.float,": "dtype=torch.float64,",
    "dtype=torch.float)": "dtype=torch.float64)",
    ".float()": ".double()",
}


def patch_casts(arch: Architecture) -> None:
    """Recompiles HF's own source of each function that casts, with float64 in place of float32."""
    for cast in arch.casts:
        owner = arch.hf_class(cast.owner) if cast.owner else arch.hf
        source = textwrap.dedent(inspect.getsource(getattr(owner, cast.function)))
        for text, times in cast.texts.items():
            if source.count(text) != times:
                where = f"{owner.__name__}.{cast.function}"
                raise RuntimeError(f"{where}: expected {text!r} {times} times, found {source.count(text)}")
            source = source.replace(text, DOUBLE[text])
        scope = {}
        exec(compile(source, f"<{cast.function} in float64>", "exec"), vars(arch.hf), scope)
        setattr(owner, cast.function, scope[cast.function])


class OnlyFloat64(TorchDispatchMode):
    """Sees every operator's result, so a cast that a new HF adds cannot go unnoticed."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for t in tree_leaves(result):
            if isinstance(t, torch.Tensor) and t.is_floating_point() and t.dtype != torch.float64:
                raise AssertionError(f"{func} gave {t.dtype}")
        return result


def hf_config(c: Config, expert_width: int):
    return c.arch.hf_class("Config")(
        vocab_size=c.vocab,
        hidden_size=c.hidden,
        intermediate_size=c.dense_width,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        num_key_value_heads=c.kv_heads,
        max_position_embeddings=64,
        rms_norm_eps=c.stored_eps,
        tie_word_embeddings=c.tied,
        rope_parameters={"rope_type": "default", "rope_theta": c.stored_theta},
        moe_intermediate_size=expert_width,
        num_experts=c.experts,
        num_experts_per_tok=c.used,
        use_cache=False,
        attn_implementation="eager",
        experts_implementation="eager",
        **c.hf_options(),
    )


def hf_state(c: Config, weights: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    ours = {name: torch.from_numpy(np.ascontiguousarray(w)) for name, w in weights.items()}
    state = {
        "model.embed_tokens.weight": ours["token_embd.weight"],
        "model.norm.weight": ours["output_norm.weight"],
        "lm_head.weight": ours["token_embd.weight" if c.tied else "output.weight"],
    }
    for n in range(c.layers):
        parts: dict[str, list[torch.Tensor]] = {}
        for name, weight in c.layer_weights().items():
            part = ours[f"blk.{n}.{name}"].reshape(c.shape(weight.hf_shape or weight.shape, n))
            parts.setdefault(f"model.layers.{n}.{weight.hf}", []).append(part)
        state |= {name: p[0] if len(p) == 1 else torch.cat(p, dim=1) for name, p in parts.items()}
    return state


def build_model(c: Config, weights: dict[str, np.ndarray]) -> torch.nn.Module:
    model = c.arch.hf_class("ForCausalLM")(hf_config(c, c.width_in(0)))
    for n, layer in enumerate(model.model.layers):
        if c.width_in(n) != c.width_in(0):  # HF's configuration has one width for all layers
            layer.mlp = c.arch.hf_class("SparseMoeBlock")(hf_config(c, c.width_in(n)))
    model.eval()
    state = hf_state(c, weights)
    model.load_state_dict(state, strict=True)
    check_model(c, model, state)
    return model


def check_model(c: Config, model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    for name, t in (*model.named_parameters(), *model.named_buffers()):
        assert t.dtype == torch.float64, f"{name} is {t.dtype}"
    for name, t in model.state_dict().items():
        assert torch.equal(t, state[name]), name
    attention = model.model.layers[0].self_attn
    assert attention.head_dim == c.head_dim and attention.num_key_value_groups == c.heads // c.kv_heads
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == c.tied

    positions = np.arange(c.prompt)
    angles = np.outer(positions, c.stored_theta ** (-2.0 * np.arange(c.head_dim // 2) / c.head_dim))
    angles = np.concatenate((angles, angles), axis=1)
    cos, sin = model.model.rotary_emb(torch.zeros(1), torch.from_numpy(positions)[None])
    assert abs(cos[0].numpy() - np.cos(angles)).max() < 1e-13
    assert abs(sin[0].numpy() - np.sin(angles)).max() < 1e-13


# ----------------------------------------------------------------------------------------------------------- stages


def shape_of(c: Config, stage: str, layer: int | None) -> tuple[int, ...]:
    stages = MODEL_WIDE_FIRST | MODEL_WIDE_LAST if layer is None else c.arch.stages
    return (c.prompt, *c.shape(stages[stage].row, layer))


def expert_stages(experts: torch.nn.Module, x, indices, weights) -> dict[str, torch.Tensor]:
    """What HF's experts module computes without showing it, from its own inputs and parameters, by slot."""
    gate_proj, up_proj = experts.gate_up_proj.chunk(2, dim=1)
    gate = torch.einsum("td,tkfd->tkf", x, gate_proj[indices])
    up = torch.einsum("td,tkfd->tkf", x, up_proj[indices])
    swiglu = experts.act_fn(gate) * up
    out = torch.einsum("tkf,tkdf->tkd", swiglu, experts.down_proj[indices])
    return {
        "moe_expert_gate": gate,
        "moe_expert_up": up,
        "moe_expert_swiglu": swiglu,
        "moe_expert_out": out,
        "moe_expert_weighted": out * weights[..., None],
    }


def rows_of(value: torch.Tensor) -> torch.Tensor:
    """HF's modules have a batch of one before the positions, except those inside the MoE block."""
    return value if value.dim() == 2 else value[0]


class Recorder:
    """Runs the model once and keeps what HF's modules took and gave, by (stage, layer)."""

    def __init__(self, c: Config, model: torch.nn.Module):
        self.c = c
        self.seen: dict[tuple[str, int | None], torch.Tensor] = {}
        self.softmaxes: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.handles = []
        self.on_output(model.model.embed_tokens, "embedding", None)
        self.on_output(model.model.norm, "final_norm", None)
        self.on_output(model.lm_head, "lm_head", None)
        for n, layer in enumerate(model.model.layers):
            for part in "qkv":
                self.on_output(layer.get_submodule(f"self_attn.{part}_proj"), f"{part}_matmul", n)
            for name, stage in c.arch.stages.items():
                if stage.shown:
                    side, module = stage.shown.split(" ")
                    watch = {"in": self.on_input, "out": self.on_output}[side]
                    watch(layer.get_submodule(module), name, n)
            self.handles.append(layer.mlp.gate.register_forward_hook(self.router_hook(n)))
            self.handles.append(layer.mlp.experts.register_forward_hook(self.experts_hook(n)))

    def keep(self, stage: str, layer: int | None, value: torch.Tensor) -> None:
        assert (stage, layer) not in self.seen, f"{stage} of layer {layer} came twice"
        self.seen[stage, layer] = value.detach().clone()

    def on_output(self, module, stage, layer):
        hook = module.register_forward_hook(lambda m, args, out: self.keep(stage, layer, rows_of(out)))
        self.handles.append(hook)

    def on_input(self, module, stage, layer):
        hook = module.register_forward_pre_hook(lambda m, args: self.keep(stage, layer, rows_of(args[0])))
        self.handles.append(hook)

    def router_hook(self, n):
        def hook(module, args, out):
            logits, weights, indices = out
            self.keep("moe_router_logits", n, logits)
            self.keep("moe_router_weights", n, weights)
            self.keep("moe_router_indices", n, indices)

        return hook

    def experts_hook(self, n):
        def hook(module, args, out):
            stages = expert_stages(module, *args)
            theirs, ours = out, stages["moe_expert_weighted"].sum(dim=1)
            worst = ((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).max().item()
            assert worst <= 1e-14, f"experts of layer {n} differ from HF's by {worst}"
            for stage, value in stages.items():
                self.keep(stage, n, value)

        return hook

    def attention_forward(self, original):
        def wrapped(module, query, key, value, *args, **kwargs):
            self.keep("q_post_rope", module.layer_idx, query[0].transpose(0, 1))
            self.keep("k_post_rope", module.layer_idx, key[0].transpose(0, 1))
            return original(module, query, key, value, *args, **kwargs)

        return wrapped

    def softmax(self, original):
        def wrapped(x, *args, **kwargs):
            out = original(x, *args, **kwargs)
            self.softmaxes.append((x.detach().clone(), out.detach().clone()))
            return out

        return wrapped

    def run(self, model, tokens: torch.Tensor) -> dict[tuple[str, int | None], np.ndarray]:
        with contextlib.ExitStack() as stack:
            stack.callback(lambda: [h.remove() for h in self.handles])
            attention = self.attention_forward(self.c.arch.hf.eager_attention_forward)
            stack.enter_context(mock.patch.object(self.c.arch.hf, "eager_attention_forward", attention))
            softmax = self.softmax(torch.nn.functional.softmax)
            stack.enter_context(mock.patch.object(torch.nn.functional, "softmax", softmax))
            logits = model(tokens).logits[0]
        assert torch.equal(logits, self.seen["lm_head", None])
        self.keep_softmaxes()
        for n in range(self.c.layers):
            parts = [self.seen.pop((f"{part}_matmul", n)) for part in "qkv"]
            self.keep("qkv_matmul", n, torch.cat(parts, dim=-1))
            for stage, value in self.c.arch.unshown(self.seen, n).items():
                self.keep(stage, n, value)
        return {site: as_stored(self.c, *site, value) for site, value in self.seen.items()}

    def keep_softmaxes(self) -> None:
        """Each layer takes two: attention's over [1, heads, T, S], then the router's over [T, experts]."""
        assert len(self.softmaxes) == 2 * self.c.layers
        later = torch.ones(self.c.prompt, self.c.prompt, dtype=torch.bool).triu(1)
        for n in range(self.c.layers):
            (scores, probs), (_, router) = self.softmaxes[2 * n], self.softmaxes[2 * n + 1]
            assert (scores[0][:, later] < -1e300).all() and (probs[0][:, later] == 0).all()
            self.keep("attn_scores", n, scores[0].masked_fill(later, 0.0).transpose(0, 1))
            self.keep("attn_softmax", n, probs[0].transpose(0, 1))
            self.keep("moe_router_probs", n, router)


def as_stored(c: Config, stage: str, layer: int | None, value: torch.Tensor) -> np.ndarray:
    shape = shape_of(c, stage, layer)
    assert tuple(value.shape) == shape, f"{stage}: {tuple(value.shape)}, expected {shape}"
    if stage == "moe_router_indices":
        assert value.dtype == torch.int64
        return np.ascontiguousarray(value.numpy().astype("<i4"))
    assert value.dtype == torch.float64, f"{stage} is {value.dtype}"
    assert value.isfinite().all(), stage
    return np.ascontiguousarray(value.numpy().astype("<f8"))


# ------------------------------------------------------------------------------------------------------------ files


def write_stages(c: Config, stages, tokens: list[int], stem: pathlib.Path, versions: dict[str, str]) -> None:
    sites = [(stage, None) for stage in MODEL_WIDE_FIRST]
    sites += [(stage, n) for n in range(c.layers) for stage in c.arch.stages]
    sites += [(stage, None) for stage in MODEL_WIDE_LAST]
    assert set(sites) == set(stages), set(sites) ^ set(stages)

    data, tensors = bytearray(), []
    for stage, layer in sites:
        value = stages[stage, layer]
        data += bytes(-len(data) % 8)  # an odd count of indices would leave the doubles after it unaligned
        entry = {"stage": stage, "layer": layer, "shape": list(value.shape)}
        entry |= {"dtype": {"<f8": "f64", "<i4": "i32"}[value.dtype.str], "offset": len(data), "bytes": value.nbytes}
        tensors.append(entry)
        data += value.tobytes()
    stem.with_suffix(".bin").write_bytes(data)

    config = dataclasses.asdict(c) | {"eps": c.stored_eps, "theta": c.stored_theta, "dense_width": c.dense_width}
    head = {"versions": versions, "config": config, "tokens": tokens}
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    lines.append('"tensors": [\n  ' + ",\n  ".join(json.dumps(entry) for entry in tensors) + "\n]")
    stem.with_suffix(".json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def make(c: Config, out: pathlib.Path, versions: dict[str, str]) -> None:
    stem = out / c.name
    weights = write_gguf(c, stem.with_suffix(".gguf"))
    tokens = draw_tokens(c)
    model = build_model(c, weights)
    batch = torch.tensor([tokens])
    with torch.no_grad(), OnlyFloat64():
        untouched = model(batch).logits[0]
        stages = Recorder(c, model).run(model, batch)
    assert np.array_equal(untouched.numpy(), stages["lm_head", None]), "watching changed the logits"
    write_stages(c, stages, tokens, stem, versions)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    parser.add_argument("--any-version", action="store_true", help="run with other versions than the pinned ones")
    args = parser.parse_args()
    versions = {name: importlib.metadata.version(name) for name in PINNED}
    found = {name: version.split("+")[0] for name, version in versions.items()}
    if found != PINNED and not args.any_version:
        raise SystemExit(f"found {found}, pinned {PINNED}; --any-version runs all the same")

    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)  # one order of sums, so that a second forward gives the same bytes
    for arch in (QWEN3MOE, QWEN2MOE):
        patch_casts(arch)
    args.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for c in CONFIGS:
        try:
            make(c, args.out, versions)
            print(f"{c.name}: done")
        except Exception:
            traceback.print_exc()
            failed.append(c.name)
    print(f"failed: {failed}" if failed else "all done")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
