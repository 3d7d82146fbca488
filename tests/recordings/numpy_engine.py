#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""An engine of Qwen3-MoE in numpy, which records itself: foreign to moe-diag, sound or with one known fault.

    numpy_engine.py tiny.gguf dump --random 64 --seed 3 --numerics bf16 --recorded moe --fault swap --layer 2

prints as JSON where the fault is and where a recording first shows it. As a module: `run(model_path, requests, ...)`.
It shares no code with moe-diag but the recorder: weights come from the gguf package, roundings and forward pass are its own.
"""

import argparse
import collections
import dataclasses
import functools
import json
import os
import pathlib
import sys

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before numpy: its threads cost small matrices ten times the time
import gguf  # noqa: E402
import numpy  # noqa: E402

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "apps/python"))
import faults  # noqa: E402
from moe_diag import Recorder  # noqa: E402

CACHED_WEIGHTS = 1 << 30  # bytes of decoded weights that are kept
TALL = 1 << 15  # rows of a matrix that are decoded at once: a multiple of GROUP
GROUP = 128  # of FP8: activations by groups of 128, weights by blocks of 128 x 128


def bf16(x):
    """Rounds to bf16, ties to even; the type stays f32."""
    bits = numpy.ascontiguousarray(x, numpy.float32).view(numpy.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(numpy.float32)


def e4m3(x):
    """Rounds to FP8 E4M3, ties to even, saturating at 448: 3 bits of mantissa, and steps of 2^-9 below 2^-6."""
    x = numpy.clip(numpy.ascontiguousarray(x, numpy.float32), numpy.float32(-448), numpy.float32(448))
    bits = x.view(numpy.uint32)
    rounded = ((bits + 0x7FFFF + (bits >> 20 & 1)) & 0xFFF00000).view(numpy.float32)
    of_small_steps = numpy.float32(1.5 * 2**14)  # floats beside it are 2^-9 apart
    return numpy.where(numpy.abs(x) < numpy.float32(2**-6), (x + of_small_steps) - of_small_steps, rounded)


def fp8_activations(x):
    """Activations in E4M3 with a scale for each 128 values of a row, as per_token_group_quant_fp8 of vLLM has it."""
    groups = numpy.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % GROUP)])
    groups = groups.reshape(*x.shape[:-1], -1, GROUP)
    scale = numpy.maximum(numpy.abs(groups).max(-1, keepdims=True), numpy.float32(1e-10)) / numpy.float32(448)
    return (e4m3(groups / scale) * scale).reshape(*x.shape[:-1], -1)[..., : x.shape[-1]]


def fp8_weights(w):
    """A matrix in E4M3 with a scale for each block of 128 x 128, as per_block_cast_to_fp8 of DeepGEMM makes it."""
    rows, columns = w.shape
    blocks = numpy.pad(w, [(0, -rows % GROUP), (0, -columns % GROUP)])
    blocks = blocks.reshape(-(-rows // GROUP), GROUP, -1, GROUP)
    scale = numpy.maximum(numpy.abs(blocks).max((1, 3), keepdims=True), numpy.float32(1e-4)) / numpy.float32(448)
    decoded = e4m3(blocks * (numpy.float32(1) / scale)) * scale
    return decoded.reshape(blocks.shape[0] * GROUP, -1)[:rows, :columns].copy()


@dataclasses.dataclass(frozen=True)
class Numerics:
    """One kind of engine. `wide` are the stages that it keeps in f32 although it stores bf16; None: it stores f32.
    `unquantised` are the products that FP8 leaves alone. The words are those of docs/numerics.md."""

    numerics: str
    stored: str
    wide: frozenset | None = None
    fp8: bool = False
    rounds_weights: bool = False
    inner: bool = False  # bf16 within a stage as well, as transformers and vLLM do
    unquantised: frozenset = frozenset({"moe_router_logits", "lm_head"})

    def store(self, stage, x):
        return x if self.wide is None or stage in self.wide else bf16(x)

    def within(self, x):
        """A value between two operations that an engine makes one stage of."""
        return bf16(x) if self.inner else x

    def read(self, stage, x):
        return fp8_activations(x) if self.fp8 and stage not in self.unquantised else x

    def weight(self, stage, w):
        if self.fp8 and stage not in self.unquantised:
            return fp8_weights(w)
        return bf16(w) if self.rounds_weights else w


HF_WIDE = frozenset({"moe_router_probs"})
VLLM_WIDE = frozenset("attn_scores attn_softmax moe_router_probs moe_router_weights moe_expert_out".split())
NUMERICS = {
    "f32": Numerics("f32", "f32"),
    "bf16": Numerics("bf16", "hf", HF_WIDE, rounds_weights=True, inner=True),
    "fp8": Numerics("fp8", "vllm", VLLM_WIDE, fp8=True, inner=True),
}

MODEL_STAGES = ("embedding", "final_norm", "lm_head")
SCORES = ("attn_scores", "attn_softmax")
LAYER_STAGES = (
    "attn_norm qkv_matmul q_norm k_norm q_post_rope k_post_rope attn_scores attn_softmax attention attn_out post_attn_residual "
    "ffn_norm moe_router_logits moe_router_probs moe_router_indices moe_router_weights moe_expert_gate moe_expert_up "
    "moe_expert_swiglu moe_expert_out moe_expert_weighted moe_ffn_out post_ffn_residual"
).split()
MOE_STAGES = ["ffn_norm", *(s for s in LAYER_STAGES if s.startswith("moe_")), "post_ffn_residual"]
RECORDED = {
    "all": [*MODEL_STAGES, *(s for s in LAYER_STAGES if s not in SCORES)],
    "moe": MOE_STAGES,
    "layers": ["moe_router_indices", "post_ffn_residual"],
    "layers_only": ["post_ffn_residual"],
}


class Weights:
    """The weights of a file, decoded when they are used; experts one by one, so that memory is bounded."""

    def __init__(self, path, numerics):
        reader = gguf.GGUFReader(path)
        fields = {name.partition(".")[2]: field for name, field in reader.fields.items() if name.startswith("qwen3moe.")}
        if not fields:
            raise ValueError(f"{path}: expected a model of qwen3moe, found {reader.fields['general.architecture'].contents()}")
        self.config = {name: field.contents() for name, field in fields.items()}
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._numerics, self._cached, self._bytes = numerics, collections.OrderedDict(), 0

    def vector(self, name):
        return numpy.asarray(self._tensors[name].data, numpy.float32)

    def rows(self, name, rows):
        tensor = self._tensors[name]
        return gguf.dequantize(numpy.asarray(tensor.data[rows]), tensor.tensor_type).astype(numpy.float32, copy=False)

    def matrices(self, stage, name, expert=None):
        """[outputs, inputs], as the product that gives this stage reads it; a tall one in pieces."""
        if name not in self._tensors and name == "output.weight":
            name = "token_embd.weight"
        tensor = self._tensors[name]
        data = tensor.data if expert is None else tensor.data[expert]
        for begin in range(0, len(data), TALL):
            yield self._decoded(stage, (name, expert, begin), data[begin : begin + TALL], tensor)

    def _decoded(self, stage, key, data, tensor):
        if key in self._cached:
            self._cached.move_to_end(key)
            return self._cached[key]
        data = numpy.asarray(data)  # a memmap is slow in small pieces
        matrix = self._numerics.weight(stage, gguf.dequantize(data, tensor.tensor_type).astype(numpy.float32, copy=False))
        self._cached[key] = matrix
        self._bytes += matrix.nbytes
        while self._bytes > CACHED_WEIGHTS and len(self._cached) > 1:
            self._bytes -= self._cached.popitem(last=False)[1].nbytes
        return matrix


@functools.lru_cache(maxsize=2)
def weights_of(path, numerics):
    """Weights that many runs share: decoding takes longer than a run."""
    return Weights(path, numerics)


class Engine:
    """The forward pass. `put(stage, layer, values)` is called with each stage, in forward order."""

    def __init__(self, path, numerics, fault):
        self.numerics, self.weights, self.fault = numerics, weights_of(str(path), numerics), fault
        c = self.weights.config
        self.layers, self.experts, self.used = c["block_count"], c["expert_count"], c["expert_used_count"]
        self.heads, self.kv_heads = c["attention.head_count"], c["attention.head_count_kv"]
        self.head_dim, self.width = c["attention.key_length"], c["expert_feed_forward_length"]
        self.eps = numpy.float32(c["attention.layer_norm_rms_epsilon"])
        self.turns = c["rope.freq_base"] ** (-2.0 * numpy.arange(self.head_dim // 2) / self.head_dim)
        self.cache = collections.defaultdict(list)  # keys and values of each call, by (request, layer)
        self.longest = 0  # positions that a row of scores has room for

    def forward(self, parts, put, last=None):
        """Logits of one call. `parts` has a request, the position of its first row and its tokens each; `last`: how many
        rows the head computes, 0 leaves it out."""
        self.parts, self._put = parts, put
        self.rows = sum(len(tokens) for _, _, tokens in parts)
        x = self.weights.rows("token_embd.weight", [token for _, _, tokens in parts for token in tokens])
        x = self.stage("embedding", None, x)
        for layer in range(self.layers):
            x = self.attention_block(layer, x)
            x = self.expert_block(layer, x)
        if last == 0:
            return None
        x = x[-last:] if last else x
        x = self.stage("final_norm", None, self.norm(x, "output_norm.weight"))
        return self.stage("lm_head", None, self.product("lm_head", None, x, "output.weight"))

    def stage(self, name, layer, x):
        x = self.numerics.store(name, x)
        self._put(name, layer, x)
        return x

    def norm(self, x, name):
        mean = (x * x).mean(-1, keepdims=True, dtype=numpy.float32)
        return self.numerics.within(x / numpy.sqrt(mean + self.eps)) * self.weights.vector(name)

    def product(self, stage, layer, x, name, expert=None):
        x = self.numerics.read(stage, x)
        if self.fault.is_at("below16", layer) and self.fault.stage == stage and self.rows < 16:
            x = numpy.concatenate([x[..., :-32], numpy.zeros_like(x[..., -32:])], -1)
        outputs = [x @ matrix.T for matrix in self.weights.matrices(stage, name, expert)]
        return outputs[0] if len(outputs) == 1 else numpy.concatenate(outputs, -1)

    # ---- attention ----

    def attention_block(self, layer, x):
        b = f"blk.{layer}."
        h = self.stage("attn_norm", layer, self.norm(x, b + "attn_norm.weight"))
        qkv = [self.product("qkv_matmul", layer, h, f"{b}attn_{part}.weight") for part in "qkv"]
        qkv = self.stage("qkv_matmul", layer, numpy.concatenate(qkv, -1))
        q, k, v = numpy.split(qkv, [self.heads * self.head_dim, (self.heads + self.kv_heads) * self.head_dim], axis=-1)
        q, k, v = (part.reshape(self.rows, -1, self.head_dim) for part in (q, k, v))
        q = self.stage("q_norm", layer, self.norm(q, b + "attn_q_norm.weight"))
        k = self.stage("k_norm", layer, self.norm(k, b + "attn_k_norm.weight"))
        positions = numpy.concatenate([first + numpy.arange(len(tokens)) for _, first, tokens in self.parts])
        if self.fault.is_at("rope_offset", layer):
            positions = positions + 1
        q = self.stage("q_post_rope", layer, self.rope(q, positions))
        k = self.stage("k_post_rope", layer, self.rope(k, positions))
        mixed = self.attention(layer, q, k, v)
        out = self.stage("attn_out", layer, self.product("attn_out", layer, mixed, b + "attn_output.weight"))
        return self.stage("post_attn_residual", layer, x + out)

    def rope(self, x, positions):
        within, angle = self.numerics.within, positions[:, None, None] * self.turns
        cos, sin = within(numpy.cos(angle).astype(numpy.float32)), within(numpy.sin(angle).astype(numpy.float32))
        a, b = numpy.split(x, 2, axis=-1)
        return numpy.concatenate([within(a * cos) - within(b * sin), within(b * cos) + within(a * sin)], -1)

    def attention(self, layer, q, k, v):
        """Each request by itself, over all of its positions. A cache holds what the stages hold: f32 or bf16."""
        begin, outputs = 0, {"attn_scores": [], "attn_softmax": [], "attention": []}
        for request, first, tokens in self.parts:
            rows = slice(begin, begin + len(tokens))
            begin += len(tokens)
            cache = self.cache[request, layer]
            cache.append((k[rows], v[rows]))
            keys, values = (numpy.concatenate(part) for part in zip(*cache))
            for stage, array in self.attention_of_one(layer, q[rows], keys, values, first).items():
                outputs[stage].append(array)
        return [self.stage(stage, layer, numpy.concatenate(arrays)) for stage, arrays in outputs.items()][-1]

    def attention_of_one(self, layer, q, keys, values, first):
        share = self.heads // self.kv_heads
        keys, values = (part.transpose(1, 0, 2).repeat(share, 0) for part in (keys, values))  # [heads, S, h]
        scores = q.transpose(1, 0, 2) @ keys.transpose(0, 2, 1)  # [heads, T, S]
        scores = self.numerics.store("attn_scores", scores) if self.numerics.inner else scores
        scores = self.numerics.store("attn_scores", scores * numpy.float32(self.head_dim**-0.5))
        own = (first + numpy.arange(len(q)))[:, None]
        seen = numpy.arange(len(keys[0])) <= own
        late = seen & (numpy.arange(len(keys[0])) > own - 8) if self.fault.is_at("late_window", layer) else seen
        logits = numpy.where(late, scores, -numpy.inf)
        raised = numpy.exp(logits - logits.max(-1, keepdims=True))
        probs = self.numerics.store("attn_softmax", raised / raised.sum(-1, keepdims=True))
        mixed = (probs @ values).transpose(1, 0, 2).reshape(len(q), -1)
        wide = [(0, 0), (0, 0), (0, max(self.longest - len(keys[0]), 0))]
        return {"attn_scores": numpy.pad(numpy.where(seen, scores, numpy.float32(0)).transpose(1, 0, 2), wide),
                "attn_softmax": numpy.pad(probs.transpose(1, 0, 2), wide), "attention": mixed}  # fmt: skip

    # ---- experts ----

    def expert_block(self, layer, x):
        h = self.stage("ffn_norm", layer, self.norm(x, f"blk.{layer}.ffn_norm.weight"))
        ids, weights = self.route(layer, h)
        self.fault.choose_expert(layer, ids, self.experts)
        gate, up = (numpy.zeros((*ids.shape, self.width), numpy.float32) for _ in "gu")
        for expert, at in self.chosen(layer, ids):
            first, second = ("gate", "up") if not self.fault.is_of("swap", layer, expert) else ("up", "gate")
            gate[at] = self.expert_product("moe_expert_gate", layer, h[at[0]], first, expert)
            up[at] = self.expert_product("moe_expert_up", layer, h[at[0]], second, expert)
        gate, up = self.stage("moe_expert_gate", layer, gate), self.stage("moe_expert_up", layer, up)
        act = self.stage("moe_expert_swiglu", layer, self.numerics.within(gate / (1 + numpy.exp(-gate))) * up)
        out = numpy.zeros((*ids.shape, x.shape[1]), numpy.float32)
        for expert, at in self.chosen(layer, ids):
            out[at] = self.expert_product("moe_expert_out", layer, act[at], "down", expert)
            if self.fault.is_of("expert5", layer, expert):
                out[at[0], at[1], : x.shape[1] // 4] *= numpy.float32(1.05)
            if self.fault.is_of("nan", layer, expert) and not self.fault.spent:
                self.fault.spent = True
                out[at[0][0], at[1][0], 5] = numpy.nan
        out = self.stage("moe_expert_out", layer, out)
        weighted = self.stage("moe_expert_weighted", layer, out * weights[..., None])
        return self.stage("post_ffn_residual", layer, x + self.stage("moe_ffn_out", layer, self.combine(layer, ids, weighted)))

    def route(self, layer, h):
        logits = self.product("moe_router_logits", layer, h, f"blk.{layer}.ffn_gate_inp.weight")
        logits = self.stage("moe_router_logits", layer, logits)
        raised = numpy.exp(logits - logits.max(-1, keepdims=True))
        probs = self.stage("moe_router_probs", layer, raised / raised.sum(-1, keepdims=True))
        ids = numpy.argsort(-probs, axis=-1, kind="stable")[:, : self.used].astype(numpy.int32)
        self._put("moe_router_indices", layer, ids)
        weights = numpy.take_along_axis(probs, ids, -1)
        if not self.fault.is_at("norenorm", layer):
            weights = weights / weights.sum(-1, keepdims=True)
        return ids, self.stage("moe_router_weights", layer, weights)

    def chosen(self, layer, ids):
        """Each expert that computes something, with the rows and slots that chose it."""
        for expert in numpy.unique(ids):
            if self.fault.is_at("global_ids", layer) and expert >= self.experts // 2:
                continue  # rank 1 has local ids below half of them
            yield expert, numpy.nonzero(ids == expert)

    def expert_product(self, stage, layer, x, part, expert):
        return self.product(stage, layer, x, f"blk.{layer}.ffn_{part}_exps.weight", expert)

    def combine(self, layer, ids, weighted):
        """Sums the experts of a row: by slots, or as transformers does by ids, each sum in bf16."""
        if self.fault.is_at("missing_rank", layer):
            weighted = numpy.where((ids < self.experts // 2)[..., None], weighted, numpy.float32(0))
        by_ids = self.numerics.stored == "hf" and self.numerics.inner
        order = numpy.argsort(ids, -1) if by_ids else numpy.broadcast_to(numpy.arange(self.used), ids.shape)
        total = numpy.zeros((len(ids), weighted.shape[-1]), numpy.float32)
        for slot in range(self.used):
            total += weighted[numpy.arange(len(ids)), order[:, slot]]
            total = bf16(total) if by_ids else total
        return total


def schedule(requests, batch):
    """The calls of a server: prompts one after the other, in chunks, then a token of each request a round. Yields parts;
    is sent the token that followed each."""
    first, following = {}, {}
    for number, request in enumerate(requests):
        name, tokens = str(request.get("request", f"r{number}")), [int(token) for token in request["tokens"]]
        chunk = request.get("chunk") or len(tokens)
        for begin in range(0, len(tokens), chunk):
            (following[name],) = yield [(name, begin, tokens[begin : begin + chunk])]
        first[name] = (len(tokens), len(tokens) + request.get("generate", 0))
    while running := [name for name, (position, end) in first.items() if position < end]:
        for group in [running] if batch else [[name] for name in running]:
            tokens = yield [(name, first[name][0], [int(following[name])]) for name in group]
            for name, token in zip(group, tokens):
                following[name] = token
                first[name] = (first[name][0] + 1, first[name][1])


def run(model_path, requests, numerics="f32", recorded="all", fault=None, layer=None, out=None, *, expert=None, stages=None,
        scores=False, plain=False, batch=True, head="all"):  # fmt: skip
    """Runs requests and writes their dump to `out`. A request is a list of tokens, or a dict with `tokens`, and `request`,
    `chunk` and `generate` if wanted. Returns where the fault is: see `faults.site`. `plain` leaves out the roundings within a
    stage, `batch` decodes all requests in one call, `head="last"` computes the logits of the last row of a prompt only."""
    requests = [request if isinstance(request, dict) else {"tokens": request} for request in requests]
    kind = dataclasses.replace(NUMERICS[numerics], inner=NUMERICS[numerics].inner and not plain)
    kept = [*RECORDED[recorded], *(SCORES if scores else ())]
    planted = faults.make(fault, layer, kept, stages, expert)
    engine = Engine(model_path, kind, planted)
    if layer is not None and not 0 <= layer < engine.layers:
        raise ValueError(f"layer {layer}: the model has layers 0 to {engine.layers - 1}")
    engine.longest = max(len(request["tokens"]) + request.get("generate", 0) for request in requests)
    wants_logits = "lm_head" in kept or any(request.get("generate") for request in requests)
    facts = {"numerics": kind.numerics, "stored": kind.stored, "model": pathlib.Path(model_path).name}
    overflow = numpy.errstate(over="ignore", invalid="ignore")  # of the exponential of a gate; of a planted NaN
    with overflow, Recorder(out, engine="numpy engine 1", stages=kept, **facts) as recorder:
        calls = schedule(requests, batch)
        parts = next(calls)
        while parts:
            last = 1 if head == "last" and len(parts) == 1 else None
            last = last if wants_logits else 0
            dicts = [{"request": name, "first": first, "tokens": tokens} for name, first, tokens in parts]
            rows = dicts[0] if len(dicts) == 1 else {"parts": dicts}
            with recorder.call(**rows) as call:
                logits = engine.forward(parts, _put(call, kind, planted), last)
            ends = numpy.cumsum([len(tokens) for _, _, tokens in parts]) - 1
            tokens = logits[[-1] if last else ends].argmax(-1) if logits is not None else [None]
            try:
                parts = calls.send(tokens)
            except StopIteration:
                parts = None
    return {"numerics": numerics, "recorded": recorded, **faults.site(planted, kept, LAYER_STAGES)}


def _put(call, kind, planted):
    """Writes a stage as the engine stores it, or as a wrong recording has it."""

    def put(stage, layer, values):
        name, values = planted.rewritten(stage, layer, values)
        if not call.wants(name, layer):
            return
        is_bf16 = kind.wide is not None and stage not in kind.wide and stage != "moe_router_indices"
        last = len(values) if stage in ("final_norm", "lm_head") else None
        call(name, layer, values, dtype="bf16" if is_bf16 else None, last=last)

    return put


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out", help="a new folder")
    parser.add_argument("--tokens", action="append", default=[], help="1,2,3: a request each")
    parser.add_argument("--random", type=int, default=64, help="how many tokens a request has, without --tokens")
    parser.add_argument("--seed", type=int, default=0, help="of random tokens")
    parser.add_argument("--requests", type=int, default=1, help="how many of random tokens")
    parser.add_argument("--chunk", type=int, help="tokens of a call, at most, while a prompt is read")
    parser.add_argument("--generate", type=int, default=0, help="tokens of each request that follow its prompt")
    parser.add_argument("--numerics", choices=NUMERICS, default="f32")
    parser.add_argument("--recorded", choices=RECORDED, default="all")
    parser.add_argument("--scores", action="store_true", help="record attn_scores and attn_softmax as well")
    parser.add_argument("--fault", choices=faults.FAULTS)
    parser.add_argument("--layer", type=int, help="of the fault; none: of a fault of the recording all layers")
    parser.add_argument("--expert", type=int, help="of the fault; else the one that most rows choose")
    parser.add_argument("--stages", nargs="+", help="of a fault of the recording, or of the kernel that below16 makes wrong")
    parser.add_argument("--plain", action="store_true", help="no roundings within a stage")
    parser.add_argument("--alone", action="store_true", help="decode each request in a call of its own")
    parser.add_argument("--head", choices=["all", "last"], default="all", help="rows of a prompt that have logits")
    a = parser.parse_args()
    requests = [[int(token) for token in text.split(",")] for text in a.tokens]
    if not requests:
        vocabulary = Weights(a.model, NUMERICS["f32"]).config["vocab_size"]
        requests = numpy.random.default_rng(a.seed).integers(0, vocabulary, (a.requests, a.random)).tolist()
    requests = [{"tokens": tokens, "chunk": a.chunk, "generate": a.generate} for tokens in requests]
    site = run(a.model, requests, a.numerics, a.recorded, a.fault, a.layer, a.out, expert=a.expert, stages=a.stages,
               scores=a.scores, plain=a.plain, batch=not a.alone, head=a.head)  # fmt: skip
    print(json.dumps(site))


if __name__ == "__main__":
    main()
