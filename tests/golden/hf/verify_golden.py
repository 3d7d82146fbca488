# SPDX-License-Identifier: MIT
"""A second witness: computes each NAME.gguf in numpy float64, from the formulas alone, and compares with NAME.bin.

Needs only numpy and gguf. Fails on a stage that differs by more than 1e-12 (relative, 2-norm), on other experts or
another order of them, on a stage missing from the index, and on routing too close to a tie to have one right answer.
"""
import json
import pathlib
import sys

import gguf
import numpy as np

TOLERANCE = 1e-12
NEAR_TIE = 1e-9


class Model:
    def __init__(self, path: pathlib.Path):
        reader = gguf.GGUFReader(path)
        self.keys = {key: field.contents() for key, field in reader.fields.items()}
        self.tensors = {t.name: t for t in reader.tensors}
        self.arch = self.keys["general.architecture"]

    def key(self, name, default=None):
        return self.keys[f"{self.arch}.{name}"] if default is None else self.keys.get(f"{self.arch}.{name}", default)

    def weight(self, name):
        return self.tensor(f"{name}.weight")

    def tensor(self, name):
        tensor = self.tensors[name]
        dense = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float64)
        return dense.reshape(tuple(reversed(tensor.shape.tolist())))


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def rotate(x, position, theta):
    """Pairs element i with i + h/2 (NeoX), as one complex number each."""
    half = x.shape[-1] // 2
    turn = np.exp(1j * position * theta ** (-np.arange(half) / half))
    z = (x[..., :half] + 1j * x[..., half:]) * turn
    return np.concatenate((z.real, z.imag), axis=-1)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def check_widths(m: Model):
    """The tensors of each layer are as wide as the keys say, or as their defaults in llama.cpp."""
    dense, used, layers = m.key("feed_forward_length"), m.key("expert_used_count"), m.key("block_count")
    widths = m.key("expert_feed_forward_length", dense // used)
    widths = widths if isinstance(widths, list) else [widths] * layers
    assert len(widths) == layers
    for n, width in enumerate(widths):
        want = (m.key("expert_count"), width, m.key("embedding_length"))
        assert m.weight(f"blk.{n}.ffn_gate_exps").shape == want, f"experts of layer {n}"
        if m.arch == "qwen2moe":
            want = (m.key("expert_shared_feed_forward_length", dense), m.key("embedding_length"))
            assert m.weight(f"blk.{n}.ffn_gate_shexp").shape == want, f"the shared expert of layer {n}"


def forward(m: Model, tokens: list[int]):
    """Every stage by (stage, layer), computed one position after the other."""
    qwen2 = {"qwen2moe": True, "qwen3moe": False}[m.arch]
    heads, kv_heads = (m.key(f"attention.{k}") for k in ("head_count", "head_count_kv"))
    h = m.key("attention.key_length", m.key("embedding_length") // heads)
    eps, theta = m.key("attention.layer_norm_rms_epsilon"), m.key("rope.freq_base")
    embedding = m.weight("token_embd")
    output = m.weight("output") if "output.weight" in m.tensors else embedding
    stages = {}

    def norm(x, name):
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * m.weight(name)

    def keep(stage, layer, rows):
        stages[stage, layer] = np.stack(rows)
        return rows

    x = keep("embedding", None, [embedding[t] for t in tokens])
    count = len(tokens)
    for n in range(m.key("block_count")):
        blk = f"blk.{n}."
        w = {name.split(".")[2]: m.tensor(name) for name in m.tensors if name.startswith(blk) and ".weight" in name}
        b = {name.split(".")[2]: m.tensor(name) for name in m.tensors if name.startswith(blk) and ".bias" in name}
        a = keep("attn_norm", n, [norm(row, blk + "attn_norm") for row in x])
        parts = ("attn_q", "attn_k", "attn_v")
        qkv = keep("qkv_matmul", n, [np.concatenate([w[p] @ row + b.get(p, 0.0) for p in parts]) for row in a])
        split = [row.reshape(heads + 2 * kv_heads, h) for row in qkv]
        q, k, v = zip(*(np.split(row, [heads, heads + kv_heads]) for row in split))
        if not qwen2:
            q = keep("q_norm", n, [norm(row, blk + "attn_q_norm") for row in q])
            k = keep("k_norm", n, [norm(row, blk + "attn_k_norm") for row in k])
        q = keep("q_post_rope", n, [rotate(row, p, theta) for p, row in enumerate(q)])
        k = keep("k_post_rope", n, [rotate(row, p, theta) for p, row in enumerate(k)])

        scores, probs = np.zeros((2, count, heads, count))
        mixed = np.zeros((count, heads, h))
        for p in range(count):
            for head in range(heads):
                group = head * kv_heads // heads
                scores[p, head, : p + 1] = [q[p][head] @ k[s][group] / np.sqrt(h) for s in range(p + 1)]
                probs[p, head, : p + 1] = softmax(scores[p, head, : p + 1])
                mixed[p, head] = sum(probs[p, head, s] * v[s][group] for s in range(p + 1))
        keep("attn_scores", n, scores)
        keep("attn_softmax", n, probs)
        mixed = keep("attention", n, mixed.reshape(count, heads * h))
        out = keep("attn_out", n, [w["attn_output"] @ row for row in mixed])
        x = keep("post_attn_residual", n, [row + more for row, more in zip(x, out)])

        f = keep("ffn_norm", n, [norm(row, blk + "ffn_norm") for row in x])
        logits = keep("moe_router_logits", n, [w["ffn_gate_inp"] @ row for row in f])
        router = keep("moe_router_probs", n, [softmax(row) for row in logits])
        best = [np.argsort(-row, kind="stable")[: m.key("expert_used_count")] for row in router]
        chosen = keep("moe_router_indices", n, best)
        total = [1.0 if qwen2 else row[e].sum() for row, e in zip(router, chosen)]
        share = keep("moe_router_weights", n, [row[e] / t for row, e, t in zip(router, chosen, total)])
        rows = list(zip(f, chosen))
        gate = keep("moe_expert_gate", n, [[w["ffn_gate_exps"][e] @ row for e in es] for row, es in rows])
        up = keep("moe_expert_up", n, [[w["ffn_up_exps"][e] @ row for e in es] for row, es in rows])
        act = keep("moe_expert_swiglu", n, np.array(gate) * sigmoid(np.array(gate)) * np.array(up))
        down = [[w["ffn_down_exps"][e] @ row for e, row in zip(es, acts)] for es, acts in zip(chosen, act)]
        keep("moe_expert_out", n, down)
        weighted = keep("moe_expert_weighted", n, np.array(down) * np.array(share)[..., None])
        ffn = keep("moe_ffn_out", n, weighted.sum(axis=1))
        if qwen2:
            gate = keep("moe_shared_gate", n, [w["ffn_gate_shexp"] @ row for row in f])
            up = keep("moe_shared_up", n, [w["ffn_up_shexp"] @ row for row in f])
            act = keep("moe_shared_swiglu", n, [g * sigmoid(g) * u for g, u in zip(gate, up)])
            down = keep("moe_shared_out", n, [w["ffn_down_shexp"] @ row for row in act])
            logit = keep("moe_shared_logit", n, [[w["ffn_gate_inp_shexp"] @ row] for row in f])
            shared = keep("moe_shared_weighted", n, sigmoid(np.array(logit)) * np.array(down))
            ffn = keep("ffn_out", n, ffn + shared)
        x = keep("post_ffn_residual", n, [row + more for row, more in zip(x, ffn)])
    final = keep("final_norm", None, [norm(row, "output_norm") for row in x])
    keep("lm_head", None, [output @ row for row in final])
    return stages


def smallest_margin(stages, used: int) -> float:
    """The least relative distance between experts next to each other in the order, down to the first one not used."""
    smallest = np.inf
    for (stage, _), probs in stages.items():
        if stage == "moe_router_probs":
            ordered = -np.sort(-probs, axis=-1)[:, : used + 1]
            gaps = (ordered[:, :-1] - ordered[:, 1:]) / ordered[:, :-1]
            smallest = min([smallest, *gaps.ravel()])
    return smallest


def verify(index_path: pathlib.Path) -> tuple[float, float]:
    """Returns the worst relative difference and the smallest routing margin."""
    index = json.loads(index_path.read_text())
    data = index_path.with_suffix(".bin").read_bytes()
    model = Model(index_path.with_suffix(".gguf"))
    check_widths(model)
    expected = forward(model, index["tokens"])
    sites = [(t["stage"], t["layer"]) for t in index["tensors"]]
    assert len(set(sites)) == len(sites) and set(sites) == set(expected), "the index has other stages"
    worst = 0.0
    for site, t in zip(sites, index["tensors"]):
        found = np.frombuffer(data, {"f64": "<f8", "i32": "<i4"}[t["dtype"]], np.prod(t["shape"]), t["offset"])
        assert found.nbytes == t["bytes"]
        want = expected[site]
        assert list(want.shape) == t["shape"], f"{site}: {t['shape']}, expected {want.shape}"
        if t["dtype"] == "i32":
            assert np.array_equal(found, want.ravel()), f"{site}: other experts"
            continue
        difference = np.linalg.norm(found - want.ravel()) / np.linalg.norm(want)
        assert difference <= TOLERANCE, f"{site}: {difference:.1e}"
        worst = max(worst, difference)
    margin = smallest_margin(expected, model.key("expert_used_count"))
    assert margin >= NEAR_TIE, f"routing margin {margin:.1e}"
    return worst, margin


def main() -> int:
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).parent
    indexes = sorted(folder.glob("*.json"))
    if not indexes:
        raise SystemExit(f"no index in {folder}")
    failed = 0
    for path in indexes:
        try:
            worst, margin = verify(path)
            print(f"{path.stem}: agrees to {worst:.1e}, smallest routing margin {margin:.1e}")
        except AssertionError as error:
            print(f"{path.stem}: {error}")
            failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
