# SPDX-License-Identifier: MIT
"""Writes tiny Qwen3-MoE models and what Hugging Face computes for them in float64.

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
from unittest import mock

import gguf
import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.models.qwen3_moe import modeling_qwen3_moe as hf

PINNED = {"transformers": "5.17.0", "torch": "2.11.0", "numpy": "2.5.2", "gguf": "0.19.0"}


@dataclasses.dataclass(frozen=True)
class Config:
    name: str
    seed: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    used: int
    expert_width: int
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

#           name           seed  L   d  Hq Hk  h   E  k   f   V  tied
CONFIGS = [
    Config("one_expert",   101, 2, 24, 2, 2,  8,  1, 1, 16, 33, False, 1e4,     1e-6,  5, {"*": "F32"}),
    Config("tied_bf16",    102, 3, 48, 4, 2, 16,  6, 2, 24, 61, True,  1e6,     1e-6,  7, {"*": "BF16"}),
    Config("all_experts",  103, 1, 32, 6, 3,  8,  5, 5, 20, 40, False, 12345.0, 1e-5,  6, {"*": "F16"}),
    Config("one_token",    104, 4, 40, 4, 1, 16, 12, 4, 14, 97, False, 1e7,     1e-6,  1, {"*": "F16"}),
    Config("forty_tokens", 105, 2, 28, 3, 1, 10, 10, 2, 12, 50, True,  1e4,     1e-5, 40, {"*": "BF16"}),
    Config("odd_widths",   106, 2, 36, 5, 1,  6,  7, 3, 20, 41, False, 1e6,     1e-6,  9, {"*": "F32"}),
    Config("equal_heads",  107, 2, 40, 4, 4, 10,  9, 2, 16, 45, True,  1e4,     1e-6, 11, {"*": "F16"}, 64),
    Config("mixed_types",  108, 4, 64, 4, 2, 12,  6, 2, 32, 70, False, 1e6,     1e-6,  3, MIXED),
]


# ---------------------------------------------------------------------------------------------------------- weights


def draw_weights(c: Config) -> dict[str, np.ndarray]:
    """Float64 weights by GGUF name, before rounding to the file's types."""
    # RandomState, because numpy froze its streams: another numpy draws the same model.
    random = np.random.RandomState(c.seed)

    def linear(gain, *shape):
        return random.standard_normal(shape) * gain / np.sqrt(shape[-1])

    def norm(size):
        return random.uniform(0.4, 1.8, size)

    weights = {"token_embd.weight": random.standard_normal((c.vocab, c.hidden))}
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    for n in range(c.layers):
        layer = {
            "attn_norm": norm(c.hidden),
            "attn_q": linear(1.2, q, c.hidden),
            "attn_k": linear(1.2, kv, c.hidden),
            "attn_v": linear(1.2, kv, c.hidden),
            "attn_q_norm": norm(c.head_dim),
            "attn_k_norm": norm(c.head_dim),
            "attn_output": linear(1.2, c.hidden, q),
            "ffn_norm": norm(c.hidden),
            "ffn_gate_inp": linear(2.0, c.experts, c.hidden),
            "ffn_gate_exps": linear(1.5, c.experts, c.expert_width, c.hidden),
            "ffn_up_exps": linear(1.5, c.experts, c.expert_width, c.hidden),
            "ffn_down_exps": linear(1.5, c.experts, c.hidden, c.expert_width),
        }
        weights.update({f"blk.{n}.{name}.weight": w for name, w in layer.items()})
    weights["output_norm.weight"] = norm(c.hidden)
    if not c.tied:
        weights["output.weight"] = linear(2.0, c.vocab, c.hidden)
    return weights


def type_of(c: Config, name: str) -> gguf.GGMLQuantizationType:
    if "norm" in name or "ffn_gate_inp" in name:
        return gguf.GGMLQuantizationType.F32
    return gguf.GGMLQuantizationType[[t for pattern, t in c.types.items() if fnmatch.fnmatch(name, pattern)][-1]]


def draw_tokens(c: Config) -> list[int]:
    tokens = np.random.RandomState(c.seed + 1000).randint(0, c.vocab, c.prompt)
    tokens[-1] = c.vocab - 1
    return tokens.tolist()


def write_gguf(c: Config, path: pathlib.Path) -> dict[str, np.ndarray]:
    """Writes the model; returns the weights exactly as the file holds them, in float64."""
    out = gguf.GGUFWriter(path, "qwen3moe")
    if c.alignment != gguf.GGUF_DEFAULT_ALIGNMENT:
        out.add_custom_alignment(c.alignment)
    out.add_name(c.name)
    out.add_quantization_version(gguf.GGML_QUANT_VERSION)
    out.add_block_count(c.layers)
    out.add_context_length(64)
    out.add_embedding_length(c.hidden)
    out.add_feed_forward_length(c.dense_width)
    out.add_head_count(c.heads)
    out.add_head_count_kv(c.kv_heads)
    out.add_key_length(c.head_dim)
    out.add_value_length(c.head_dim)
    out.add_layer_norm_rms_eps(c.eps)
    out.add_rope_freq_base(c.theta)
    out.add_expert_count(c.experts)
    out.add_expert_used_count(c.used)
    out.add_expert_feed_forward_length(c.expert_width)
    out.add_vocab_size(c.vocab)
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
CASTS = [  # (owner, function, what it casts with, each once)
    (hf.Qwen3MoeRMSNorm, "forward", ["torch.float32"]),
    (hf, "eager_attention_forward", ["torch.float32"]),
    (hf.Qwen3MoeTopKRouter, "forward", ["dtype=torch.float,"]),
    (hf.Qwen3MoeRotaryEmbedding, "compute_default_rope_parameters", ["dtype=torch.float)"]),
    (hf.Qwen3MoeRotaryEmbedding, "forward", ["dtype=torch.float,", ".float()"]),
]


def patch_casts() -> None:
    """Recompiles HF's own source of each function that casts, with float64 in place of float32."""
    for owner, name, casts in CASTS:
        source = textwrap.dedent(inspect.getsource(getattr(owner, name)))
        for cast in casts:
            if source.count(cast) != 1:
                raise RuntimeError(f"{owner.__name__}.{name}: expected {cast!r} once, found {source.count(cast)}")
            source = source.replace(cast, DOUBLE[cast])
        scope = {}
        exec(compile(source, f"<{name} in float64>", "exec"), vars(hf), scope)
        setattr(owner, name, scope[name])


class OnlyFloat64(TorchDispatchMode):
    """Sees every operator's result, so a cast that a new HF adds cannot go unnoticed."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for t in tree_leaves(result):
            if isinstance(t, torch.Tensor) and t.is_floating_point() and t.dtype != torch.float64:
                raise AssertionError(f"{func} gave {t.dtype}")
        return result


def build_model(c: Config, weights: dict[str, np.ndarray]) -> hf.Qwen3MoeForCausalLM:
    config = hf.Qwen3MoeConfig(
        vocab_size=c.vocab,
        hidden_size=c.hidden,
        intermediate_size=c.dense_width,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        num_key_value_heads=c.kv_heads,
        head_dim=c.head_dim,
        max_position_embeddings=64,
        rms_norm_eps=c.stored_eps,
        tie_word_embeddings=c.tied,
        rope_parameters={"rope_type": "default", "rope_theta": c.stored_theta},
        moe_intermediate_size=c.expert_width,
        num_experts=c.experts,
        num_experts_per_tok=c.used,
        norm_topk_prob=True,
        use_cache=False,
        attn_implementation="eager",
        experts_implementation="eager",
    )
    model = hf.Qwen3MoeForCausalLM(config).eval()
    ours = {name: torch.from_numpy(np.ascontiguousarray(w)) for name, w in weights.items()}
    state = {
        "model.embed_tokens.weight": ours["token_embd.weight"],
        "model.norm.weight": ours["output_norm.weight"],
        "lm_head.weight": ours["token_embd.weight" if c.tied else "output.weight"],
    }
    for n in range(c.layers):
        blk = {name: ours[f"blk.{n}.{name}.weight"] for name in (
            "attn_norm", "attn_q", "attn_k", "attn_v", "attn_q_norm", "attn_k_norm", "attn_output", "ffn_norm",
            "ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")}
        layer = {
            "input_layernorm.weight": blk["attn_norm"],
            "self_attn.q_proj.weight": blk["attn_q"],
            "self_attn.k_proj.weight": blk["attn_k"],
            "self_attn.v_proj.weight": blk["attn_v"],
            "self_attn.q_norm.weight": blk["attn_q_norm"],
            "self_attn.k_norm.weight": blk["attn_k_norm"],
            "self_attn.o_proj.weight": blk["attn_output"],
            "post_attention_layernorm.weight": blk["ffn_norm"],
            "mlp.gate.weight": blk["ffn_gate_inp"],
            "mlp.experts.gate_up_proj": torch.cat((blk["ffn_gate_exps"], blk["ffn_up_exps"]), dim=1),
            "mlp.experts.down_proj": blk["ffn_down_exps"],
        }
        state.update({f"model.layers.{n}.{name}": w for name, w in layer.items()})
    model.load_state_dict(state, strict=True)
    check_model(c, model, state)
    return model


def check_model(c: Config, model: hf.Qwen3MoeForCausalLM, state: dict[str, torch.Tensor]) -> None:
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

MODEL_WIDE_FIRST = ["embedding"]
PER_LAYER = [
    "attn_norm", "qkv_matmul", "q_norm", "k_norm", "q_post_rope", "k_post_rope", "attn_scores", "attn_softmax",
    "attention", "attn_out", "post_attn_residual", "ffn_norm", "moe_router_logits", "moe_router_probs",
    "moe_router_indices", "moe_router_weights", "moe_expert_gate", "moe_expert_up", "moe_expert_swiglu",
    "moe_expert_out", "moe_expert_weighted", "moe_ffn_out", "post_ffn_residual",
]
MODEL_WIDE_LAST = ["final_norm", "lm_head"]


def shape_of(c: Config, stage: str) -> tuple[int, ...]:
    per_head = {"q": c.heads, "k": c.kv_heads}
    match stage:
        case "qkv_matmul":
            row = ((c.heads + 2 * c.kv_heads) * c.head_dim,)
        case "q_norm" | "k_norm" | "q_post_rope" | "k_post_rope":
            row = (per_head[stage[0]], c.head_dim)
        case "attn_scores" | "attn_softmax":
            row = (c.heads, c.prompt)
        case "attention":
            row = (c.heads * c.head_dim,)
        case "moe_router_logits" | "moe_router_probs":
            row = (c.experts,)
        case "moe_router_indices" | "moe_router_weights":
            row = (c.used,)
        case "moe_expert_gate" | "moe_expert_up" | "moe_expert_swiglu":
            row = (c.used, c.expert_width)
        case "moe_expert_out" | "moe_expert_weighted":
            row = (c.used, c.hidden)
        case "lm_head":
            row = (c.vocab,)
        case _:
            row = (c.hidden,)
    return (c.prompt, *row)


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


class Recorder:
    """Runs the model once and keeps what HF's modules took and gave, by (stage, layer)."""

    def __init__(self, c: Config, model: hf.Qwen3MoeForCausalLM):
        self.c = c
        self.seen: dict[tuple[str, int | None], torch.Tensor] = {}
        self.softmaxes: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.handles = []
        self.on_output(model.model.embed_tokens, "embedding", None)
        self.on_output(model.model.norm, "final_norm", None)
        self.on_output(model.lm_head, "lm_head", None)
        for n, layer in enumerate(model.model.layers):
            attention = layer.self_attn
            self.on_output(layer.input_layernorm, "attn_norm", n)
            for part, module in (("q", attention.q_proj), ("k", attention.k_proj), ("v", attention.v_proj)):
                self.on_output(module, f"{part}_matmul", n)
            self.on_output(attention.q_norm, "q_norm", n)
            self.on_output(attention.k_norm, "k_norm", n)
            self.on_input(attention.o_proj, "attention", n)
            self.on_output(attention.o_proj, "attn_out", n)
            self.on_input(layer.post_attention_layernorm, "post_attn_residual", n)
            self.on_output(layer.post_attention_layernorm, "ffn_norm", n)
            self.handles.append(layer.mlp.gate.register_forward_hook(self.router_hook(n)))
            self.handles.append(layer.mlp.experts.register_forward_hook(self.experts_hook(n)))
            self.on_output(layer.mlp, "moe_ffn_out", n)
            self.on_output(layer, "post_ffn_residual", n)

    def keep(self, stage: str, layer: int | None, value: torch.Tensor) -> None:
        assert (stage, layer) not in self.seen, f"{stage} of layer {layer} came twice"
        self.seen[stage, layer] = value.detach().clone()

    def on_output(self, module, stage, layer):
        self.handles.append(module.register_forward_hook(lambda m, args, out: self.keep(stage, layer, out[0])))

    def on_input(self, module, stage, layer):
        self.handles.append(module.register_forward_pre_hook(lambda m, args: self.keep(stage, layer, args[0][0])))

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
            attention = self.attention_forward(hf.eager_attention_forward)
            stack.enter_context(mock.patch.object(hf, "eager_attention_forward", attention))
            softmax = self.softmax(torch.nn.functional.softmax)
            stack.enter_context(mock.patch.object(torch.nn.functional, "softmax", softmax))
            logits = model(tokens).logits[0]
        assert torch.equal(logits, self.seen["lm_head", None])
        self.keep_softmaxes()
        for n in range(self.c.layers):
            parts = [self.seen.pop((f"{part}_matmul", n)) for part in "qkv"]
            self.keep("qkv_matmul", n, torch.cat(parts, dim=-1))
        return {site: as_stored(self.c, site[0], value) for site, value in self.seen.items()}

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


def as_stored(c: Config, stage: str, value: torch.Tensor) -> np.ndarray:
    assert tuple(value.shape) == shape_of(c, stage), f"{stage}: {tuple(value.shape)}, expected {shape_of(c, stage)}"
    if stage == "moe_router_indices":
        assert value.dtype == torch.int64
        return np.ascontiguousarray(value.numpy().astype("<i4"))
    assert value.dtype == torch.float64, f"{stage} is {value.dtype}"
    assert value.isfinite().all(), stage
    return np.ascontiguousarray(value.numpy().astype("<f8"))


# ------------------------------------------------------------------------------------------------------------ files


def write_stages(c: Config, stages, tokens: list[int], stem: pathlib.Path, versions: dict[str, str]) -> None:
    sites = [(stage, None) for stage in MODEL_WIDE_FIRST]
    sites += [(stage, n) for n in range(c.layers) for stage in PER_LAYER]
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
    patch_casts()
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
