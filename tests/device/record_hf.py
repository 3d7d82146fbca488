# SPDX-License-Identifier: MIT
"""Records small random models of transformers in every mode, and checks each recorded array: run by hand, best with a GPU.

    PYTHONPATH=apps/python python3 tests/device/record_hf.py [--device cuda] [--modes eager,compile,graph] [--keep FOLDER]

Each stage of a dump is computed again in double out of the stages that were recorded before it, by plain formulas and the
model's weights. So a tensor that was taken at the wrong place, of another layer, in another order or half written is seen,
whatever the mode did to the model. The last line counts: exit code 0 where nothing failed.
"""

import argparse
import pathlib
import sys
import tempfile
import time
import traceback

import torch
import transformers
from moe_diag import open_dump, record

SIZES = dict(vocab_size=97, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, num_experts=6,
             num_experts_per_tok=2, moe_intermediate_size=48, intermediate_size=80, max_position_embeddings=256)  # fmt: skip
PROMPT = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46]
LIMITS = {torch.float32: 2e-5, torch.bfloat16: 2e-2}  # relative L2 of one step; bf16 rounds several times within a step
WRONG = 0.1  # a stage that is another tensor differs by more than this, in any type


def make_model(kind, dtype, device, experts):
    """A model with random weights, norms among them: else q_norm and k_norm could stand for each other."""
    torch.manual_seed(7)
    if kind == "qwen3_moe":
        config = transformers.Qwen3MoeConfig(head_dim=16, norm_topk_prob=True, **SIZES)
        model = transformers.Qwen3MoeForCausalLM(config)
    else:
        config = transformers.Qwen2MoeConfig(shared_expert_intermediate_size=40, norm_topk_prob=False, **SIZES)
        model = transformers.Qwen2MoeForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(1 + 0.3 * torch.randn_like(weight) if "norm" in name else torch.randn_like(weight) / weight.shape[-1] ** 0.5)
    model = model.to(device, dtype)
    if experts and hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation(experts)
    return model


class Expected:
    """Computes stages of a dump in double from the stages before them."""

    def __init__(self, model, dump):
        self.dump, self.config = dump, model.config
        self.weights = {name: value.detach().double().cpu() for name, value in model.state_dict().items()}
        self.positions = torch.tensor([position for call in dump.calls for position in call.positions])
        self.tokens = torch.tensor([token for call in dump.calls for token in call.tokens])
        self.head = getattr(model.config, "head_dim", None) or model.config.hidden_size // model.config.num_attention_heads
        self.heads, self.kv_heads = model.config.num_attention_heads, model.config.num_key_value_heads

    def at(self, stage, layer=None):
        return torch.from_numpy(self.dump[stage, layer].copy()).double()

    def weight(self, name, layer=None):
        return self.weights[f"model.layers.{layer}.{name}.weight" if layer is not None else f"{name}.weight"]

    def product(self, values, name, layer):
        bias = self.weights.get(f"model.layers.{layer}.{name}.bias")
        out = values @ self.weight(name, layer).T
        return out if bias is None else out + bias

    def norm(self, values, weight):
        return values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + self.config.rms_norm_eps) * weight

    def expert(self, layer, part):
        """[experts, rows, columns] of gate, up or down, whichever way the version keeps them."""
        base = f"model.layers.{layer}.mlp.experts."
        if base + "gate_up_proj" in self.weights:
            if part == "down":
                return self.weights[base + "down_proj"]
            return self.weights[base + "gate_up_proj"].chunk(2, dim=1)[part == "up"]
        return torch.stack([self.weights[f"{base}{e}.{part}_proj.weight"] for e in range(self.config.num_experts)])

    def layer_input(self, layer):
        return self.at("post_ffn_residual", layer - 1) if layer else self.at("embedding")

    def qkv(self, layer, part):
        """Queries, keys or values, [rows, heads, head]."""
        q, k = self.heads * self.head, self.kv_heads * self.head
        rows = self.at("qkv_matmul", layer)
        rows = {"q": rows[:, :q], "k": rows[:, q : q + k], "v": rows[:, q + k :]}[part]
        return rows.reshape(len(rows), -1, self.head)

    def rotated(self, layer, part):
        values = self.at(f"{part}_norm", layer) if (f"{part}_norm", layer) in self.dump else self.qkv(layer, part)
        parameters = getattr(self.config, "rope_parameters", None) or {}
        theta = parameters.get("rope_theta", getattr(self.config, "rope_theta", 1e4))
        angles = self.positions[:, None, None] * theta ** (-torch.arange(0, self.head, 2).double() / self.head)
        a, b = values.chunk(2, dim=-1)
        return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], dim=-1)

    def attention(self, layer):
        group = self.heads // self.kv_heads
        q, k = self.at("q_post_rope", layer), self.at("k_post_rope", layer).repeat_interleave(group, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) / self.head**0.5
        scores = scores.masked_fill(self.positions[None, None, :] > self.positions[None, :, None], -torch.inf)
        out = torch.einsum("hqk,khd->qhd", scores.softmax(-1), self.qkv(layer, "v").repeat_interleave(group, 1))
        return out.reshape(len(out), -1)

    def router_weights(self, layer):
        chosen = self.at("moe_router_probs", layer).gather(1, self.at("moe_router_indices", layer).long())
        return chosen / chosen.sum(-1, keepdim=True) if self.config.norm_topk_prob else chosen

    def experts_of(self, layer, part, values):
        """A row for each slot, of values [rows, slots, columns]."""
        return torch.einsum("rso,rsfo->rsf", values, self.expert(layer, part)[self.at("moe_router_indices", layer).long()])

    def compute(self, stage, layer):
        at, product = lambda name: self.at(name, layer), self.product
        spread = lambda: at("ffn_norm")[:, None].expand(-1, self.config.num_experts_per_tok, -1)  # noqa: E731
        silu = torch.nn.functional.silu
        return {
            "embedding": lambda: self.weight("model.embed_tokens")[self.tokens],
            "attn_norm": lambda: self.norm(self.layer_input(layer), self.weight("input_layernorm", layer)),
            "qkv_matmul": lambda: torch.cat([product(at("attn_norm"), f"self_attn.{p}_proj", layer) for p in "qkv"], -1),
            "q_norm": lambda: self.norm(self.qkv(layer, "q"), self.weight("self_attn.q_norm", layer)),
            "k_norm": lambda: self.norm(self.qkv(layer, "k"), self.weight("self_attn.k_norm", layer)),
            "q_post_rope": lambda: self.rotated(layer, "q"),
            "k_post_rope": lambda: self.rotated(layer, "k"),
            "attention": lambda: self.attention(layer),
            "attn_out": lambda: product(at("attention"), "self_attn.o_proj", layer),
            "post_attn_residual": lambda: self.layer_input(layer) + at("attn_out"),
            "ffn_norm": lambda: self.norm(at("post_attn_residual"), self.weight("post_attention_layernorm", layer)),
            "moe_router_logits": lambda: product(at("ffn_norm"), "mlp.gate", layer),
            "moe_router_probs": lambda: at("moe_router_logits").softmax(-1),
            "moe_router_indices": lambda: at("moe_router_probs").topk(self.config.num_experts_per_tok).indices.double(),
            "moe_router_weights": lambda: self.router_weights(layer),
            "moe_expert_gate": lambda: self.experts_of(layer, "gate", spread()),
            "moe_expert_up": lambda: self.experts_of(layer, "up", spread()),
            "moe_expert_swiglu": lambda: silu(at("moe_expert_gate")) * at("moe_expert_up"),
            "moe_expert_out": lambda: self.experts_of(layer, "down", at("moe_expert_swiglu")),
            "moe_expert_weighted": lambda: at("moe_expert_out") * at("moe_router_weights")[..., None],
            "moe_ffn_out": lambda: at("moe_expert_weighted").sum(1),
            "moe_shared_gate": lambda: product(at("ffn_norm"), "mlp.shared_expert.gate_proj", layer),
            "moe_shared_up": lambda: product(at("ffn_norm"), "mlp.shared_expert.up_proj", layer),
            "moe_shared_swiglu": lambda: silu(at("moe_shared_gate")) * at("moe_shared_up"),
            "moe_shared_out": lambda: product(at("moe_shared_swiglu"), "mlp.shared_expert.down_proj", layer),
            "moe_shared_logit": lambda: product(at("ffn_norm"), "mlp.shared_expert_gate", layer),
            "ffn_out": lambda: at("moe_expert_weighted").sum(1) + at("moe_shared_logit").sigmoid() * at("moe_shared_out"),
            "post_ffn_residual": lambda: at("post_attn_residual")
            + at("ffn_out" if ("ffn_out", layer) in self.dump else "moe_ffn_out"),
            "final_norm": lambda: self.norm(self.layer_input(self.config.num_hidden_layers), self.weight("model.norm")),
            "lm_head": lambda: self.at("final_norm") @ self.weight("lm_head").T,
        }[stage]()  # fmt: skip


def check_dump(model, path, limit):
    """Prints the error of each stage, the worst over layers, or why it cannot be computed; how many are wrong."""
    dump = open_dump(path)
    expected, wrong = Expected(model, dump), 0
    for stage in dump.stages:
        errors, why = {}, ""
        for layer in [layer for name, layer in dump if name == stage]:
            try:
                found, want = expected.at(stage, layer), expected.compute(stage, layer)
                if stage == "moe_router_indices":  # the order of equal weights is free
                    found, want = found.sort(-1).values, want.sort(-1).values
                errors[layer] = ((found - want).norm() / want.norm()).item() if found.shape == want.shape else float("inf")
            except KeyError as error:
                why = f"not checked: {error}"
        worst = max(errors, key=errors.get, default=None)
        # An operator within one fused step of bf16 is seen before its rounding: what is wrong in kind is told by WRONG.
        bad = bool(errors) and not errors[worst] <= (0.0 if stage == "moe_router_indices" else limit)
        wrong += bad
        first = dump.bits(stage, next(layer for name, layer in dump if name == stage))
        status = "FAIL" if bad else "ok" if errors else "?"
        error = f"{errors[worst]:.2e} at layer {worst}" if errors else why
        kind = "" if not bad else "  WRONG TENSOR" if not errors[worst] <= WRONG else "  INEXACT"
        print(f"    {status:<5}{stage:<20} {str(list(first.shape)):<16} {str(first.dtype):<8} {error}{kind}")
    return wrong


def check(case, folder, device):
    """Records one case; a list of what is wrong."""
    kind, dtype, mode, experts, options = case
    model = make_model(kind, dtype, device, experts)
    path = folder / "-".join([kind, str(dtype).split(".")[1], mode, experts or "default", str(len(options))])
    start = time.time()
    recording = record(model, PROMPT, path, mode=mode, **options)
    print(f"  {time.time() - start:.1f} s\n  " + str(recording).split("\n")[0])
    for stage, why in recording.missing.items():
        print(f"    not  {stage:<20} {why}")
    wrong = check_dump(model, path, LIMITS[dtype])
    failures = [f"{wrong} stages wrong"] if wrong else []
    calls = open_dump(path).calls
    if {call.mode for call in calls} != {mode} or [len(call.positions) for call in calls] != lengths(options):
        failures.append(f"calls: {[call.line for call in calls]}")
    if mode != "compile" and recording.logits_changed_by != 0:
        failures.append(f"the recording changed the logits by {recording.logits_changed_by}")
    may_miss = {"attn_scores", "attn_softmax", "moe_shared_weighted"}
    if int(transformers.__version__.split(".")[0]) < 5:
        loop = {stage for stage in recording.missing if stage.startswith(("moe_expert_", "moe_router_"))}
        may_miss |= {"moe_ffn_out"} if kind == "qwen2_moe" else set()
        may_miss |= loop - {"moe_router_logits"} if mode == "compile" else set()
    failures += [f"{stage} was not recorded: {why}" for stage, why in recording.missing.items() if stage not in may_miss]
    return failures


def lengths(options):
    chunk = options.get("chunk") or len(PROMPT)
    return [min(chunk, len(PROMPT) - at) for at in range(0, len(PROMPT), chunk)] + [1] * options.get("max_new_tokens", 0)


def implementations(mode, dtype, fused):
    """Of experts. grouped_mm, which is the default, cannot be captured in f32."""
    if not fused:
        return [] if mode == "graph" else [None]
    if mode == "compile":
        return [None]
    return [None, "eager", "batched_mm"] if mode == "eager" else ["batched_mm"] if dtype == torch.float32 else [None, "batched_mm"]


def cases(modes, fused, device):
    for mode in modes:
        whole, calls = {}, {"chunk": 4, "max_new_tokens": 3}
        if device == "cpu" and mode == "compile":
            calls["compile_options"] = {"backend": "aot_eager"}
        for kind in ("qwen3_moe", "qwen2_moe"):
            for dtype in LIMITS:
                if device == "cpu" and mode == "compile" and (kind == "qwen2_moe" or dtype == torch.float32):
                    continue  # compiling takes long there
                for experts in implementations(mode, dtype, fused):
                    yield kind, dtype, mode, experts, calls
                if mode == "eager":
                    yield kind, dtype, mode, None, whole


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--modes", default="eager,compile,graph" if torch.cuda.is_available() else "eager,compile")
    parser.add_argument("--only", default="", help="a part of the name of a case")
    parser.add_argument("--keep", type=pathlib.Path, help="a new folder for the dumps")
    arguments = parser.parse_args()
    fused = int(transformers.__version__.split(".")[0]) >= 5
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu"
    print(f"transformers {transformers.__version__}, torch {torch.__version__}, {name}")
    results = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or pathlib.Path(temporary)
        for case in cases(arguments.modes.split(","), fused, arguments.device):
            title = f"{case[0]} {str(case[1]).split('.')[1]} {case[2]} experts={case[3] or 'default'} {case[4] or 'one call'}"
            if arguments.only not in title:
                continue
            print(f"\n{title}", flush=True)
            try:
                failures = check(case, folder, arguments.device)
            except Exception:  # each case is told about
                failures = [traceback.format_exc().strip().split("\n")[-1]]
                traceback.print_exc(file=sys.stdout)
            results.append((title, failures))
    print("\nSUMMARY")
    for title, failures in results:
        print(f"  {'FAILED' if failures else 'passed'}  {title}" + "".join(f"\n          {failure}" for failure in failures))
    failed = sum(bool(failures) for _, failures in results)
    print(f"{len(results) - failed} passed, {failed} failed")
    return 1 if failed or not results else 0


if __name__ == "__main__":
    sys.exit(main())
