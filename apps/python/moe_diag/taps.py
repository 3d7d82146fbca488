# SPDX-License-Identifier: MIT
"""Where `moe_diag.record` reads the tensors of a PyTorch model: outputs and inputs of modules, and functions inside of them.

Each tap copies rows into a buffer that was there before anything was compiled or captured. So the copy is a part of the
compiled program or of the CUDA graph, and runs whenever that runs. Nothing is computed for the sake of a recording.
"""

from __future__ import annotations

import functools
import sys

from .recorder import MODEL_STAGES

# By stage: the module whose output it is, or its input. Of several modules the outputs stand side by side.
MODULES = {
    "embedding": "embed_tokens",
    "attn_norm": "layers.{layer}.input_layernorm",
    "qkv_matmul": "layers.{layer}.self_attn.q_proj + layers.{layer}.self_attn.k_proj + layers.{layer}.self_attn.v_proj",
    "q_norm": "layers.{layer}.self_attn.q_norm",
    "k_norm": "layers.{layer}.self_attn.k_norm",
    "attention": "input of layers.{layer}.self_attn.o_proj",
    "attn_out": "layers.{layer}.self_attn.o_proj",
    "post_attn_residual": "input of layers.{layer}.post_attention_layernorm",
    "ffn_norm": "layers.{layer}.post_attention_layernorm",
    "post_ffn_residual": "layers.{layer}",
    "final_norm": "norm",
}
# Where the layer has experts; `mlp` is their sum alone, unless there is a shared expert.
SPARSE = {"moe_ffn_out": "layers.{layer}.mlp"}
SHARED = {
    "ffn_out": "layers.{layer}.mlp",
    "moe_shared_gate": "layers.{layer}.mlp.shared_expert.gate_proj",
    "moe_shared_up": "layers.{layer}.mlp.shared_expert.up_proj",
    "moe_shared_swiglu": "input of layers.{layer}.mlp.shared_expert.down_proj",
    "moe_shared_out": "layers.{layer}.mlp.shared_expert",
    "moe_shared_logit": "layers.{layer}.mlp.shared_expert_gate",
}
FUSED_SHARED = {**SHARED, "moe_ffn_out": "layers.{layer}.mlp.experts"}
# Why a stage is missing, where the model has it.
REASONS = {
    "attn_scores": "fused into attention, and its rows grow from call to call",
    "attn_softmax": "fused into attention, and its rows grow from call to call",
    "moe_shared_weighted": "computed inside the block, by no module",
}
EXPERT_STAGES = [f"moe_expert_{part}" for part in ("gate", "up", "swiglu", "out", "weighted")]
UNSEEN = "the model computes it under no name that is known here"
MARK = 0xA5  # what fills a buffer before a call, byte by byte


class Buffers:
    """Rows of one call by (stage, layer), on the device. They are made in a first, eager pass (`making`)."""

    def __init__(self, torch, rows, wants):
        self._torch, self._rows, self._wants = torch, rows, wants
        self.arrays, self.making = {}, False

    def keep(self, stage, layer, values, begin=0, width=None):
        """Copies rows [n, ...], into columns from `begin` on where several modules make a row of `width`."""
        if self.making:
            self._make(stage, layer, [self._rows, *values.shape[1:-1], width or values.shape[-1]], values)
        buffer = self.arrays.get((stage, layer))
        if buffer is not None:
            buffer[: values.shape[0], ..., begin : begin + values.shape[-1]].copy_(values)

    def scatter(self, stage, layer, used, values, entries=None):
        """Copies a row for each pair of token and slot: entry token * used + slot, in the order of `entries` if there is one."""
        if self.making:
            self._make(stage, layer, [self._rows, used, values.shape[-1]], values)
        buffer = self.arrays.get((stage, layer))
        if buffer is None:
            return
        flat = buffer.view(self._rows * used, values.shape[-1])
        if entries is None:
            flat[: values.shape[0]].copy_(values)
        else:
            flat.index_copy_(0, entries, values)

    def mark(self):
        """Fills all buffers, so that rows which nobody wrote are seen."""
        for buffer in self.arrays.values():
            buffer.view(self._torch.uint8).fill_(MARK)

    def _make(self, stage, layer, shape, values):
        if (stage, layer) in self.arrays or not self._wants(stage, layer):
            return
        torch = self._torch
        dtype = values.dtype if values.is_floating_point() else torch.int32
        buffer = torch.empty(shape, dtype=dtype, device=values.device)
        torch._dynamo.mark_static_address(buffer)
        self.arrays[stage, layer] = buffer


class Taps:
    """All taps of a model, as a context manager. `modules` adds to MODULES or replaces: {stage: "layers.{layer}.mlp"}."""

    def __init__(self, torch, model, buffers, modules=None, mode="eager"):
        self._torch, self._model, self._buffers, self._mode = torch, model, buffers, mode
        (self._watcher_class, self._mode_class), self._undo = _watchers(torch), []
        self._layer = self._watcher = None  # those that are computed right now
        self.reasons = dict(REASONS)
        self._named = dict(model.named_modules())
        self._paths, self._blocks = self._paths_of(modules or {})

    def stages(self):
        """What the model may have, whether or not it is seen."""
        inside = ["q_post_rope", "k_post_rope", "attn_scores", "attn_softmax"] if self._attentions() else []
        if self._blocks:
            inside += ["moe_router_logits", "moe_router_probs", "moe_router_indices", "moe_router_weights", "moe_ffn_out"]
            inside += EXPERT_STAGES
        if any(hasattr(block, "shared_expert") for _, block in self._blocks):
            inside += [*SHARED, "moe_shared_weighted"]
        return list(dict.fromkeys([*(stage for stage, _, _ in self._paths), *inside]))

    def __enter__(self):
        for stage, layer, path in self._paths:
            self._tap_modules(stage, layer, path)
        for layer, attention in self._attentions():
            self._replace(attention, "forward", self._attention(layer, attention.forward))
        for module in {sys.modules[type(attention).__module__] for _, attention in self._attentions()}:
            if hasattr(module, "apply_rotary_pos_emb"):
                self._replace(module, "apply_rotary_pos_emb", self._rotary(module.apply_rotary_pos_emb))
        for name in ("_grouped_linear", "_batched_linear"):
            module = sys.modules.get("transformers.integrations.moe")
            if hasattr(module, name):
                self._replace(module, name, self._products(getattr(module, name), name == "_grouped_linear"))
        for layer, block in self._blocks:
            self._tap_block(layer, block)
        return self

    def __exit__(self, *_):
        for undo in reversed(self._undo):
            undo()
        self._undo = []

    def _paths_of(self, modules):
        """(stage, layer, modules) that there are, and (layer, block) of layers with experts."""
        prefix = next((name[: -len("layers")] for name, module in self._named.items() if name.split(".")[-1] == "layers"
                       and hasattr(module, "__len__") and len(module) and hasattr(module[0], "self_attn")), None)  # fmt: skip
        paths, blocks, wanted = [], [], dict(modules)
        if prefix is not None:
            layers = len(self._named[prefix + "layers"])
            blocks = [(layer, self._named[f"{prefix}layers.{layer}.mlp"]) for layer in range(layers)
                      if hasattr(self._named.get(f"{prefix}layers.{layer}.mlp"), "experts")]  # fmt: skip
            known = {stage: [(layer, path) for layer in range(layers)] for stage, path in MODULES.items()}
            for layer, block in blocks:
                fused = not hasattr(block.experts, "__len__")
                inside = (FUSED_SHARED if fused else SHARED) if hasattr(block, "shared_expert") else SPARSE
                for stage, path in inside.items():
                    known.setdefault(stage, []).append((layer, path))
                if inside is SHARED:
                    self.reasons["moe_ffn_out"] = "the block adds the shared expert to it before anybody sees it"
            for stage, places in known.items():
                for layer, path in places if stage not in MODEL_STAGES else places[:1]:
                    if stage not in wanted:
                        self._add(paths, stage, layer, _prefixed(path, prefix))
            if "lm_head" not in wanted:
                self._add(paths, "lm_head", 0, "lm_head")
        for stage, path in wanted.items():
            layer, before = 0, -1
            while len(paths) != before and (layer == 0 or "{layer}" in path):
                before = len(paths)
                self._add(paths, stage, layer, path)
                layer += 1
        return paths, blocks

    def _add(self, paths, stage, layer, path):
        path = path.replace("{layer}", str(layer))
        if all(name in self._named for name in path.removeprefix("input of ").split(" + ")):
            paths.append((stage, None if stage in MODEL_STAGES else layer, path))

    def _attentions(self):
        return [(layer, self._named[path]) for stage, layer, path in self._paths_below("self_attn") if stage == "attn_out"]

    def _paths_below(self, child):
        for stage, layer, path in self._paths:
            if f".{child}." in path:
                yield stage, layer, path[: path.index(f".{child}.")] + f".{child}"

    def _tap_modules(self, stage, layer, path):
        names = path.removeprefix("input of ").split(" + ")
        sizes = [getattr(self._named[name], "out_features", None) for name in names]
        width, begin = (sum(sizes), 0) if len(names) > 1 else (None, 0)
        for name, size in zip(names, sizes):
            module = self._named[name]
            if path.startswith("input of "):
                handle = module.register_forward_pre_hook(self._input_hook(stage, layer))
            else:
                handle = module.register_forward_hook(self._output_hook(stage, layer, begin, width))
            self._undo.append(handle.remove)
            begin += size or 0

    def _input_hook(self, stage, layer):
        def hook(module, arguments):
            self._buffers.keep(stage, layer, _rows(stage, arguments[0]))

        return hook

    def _output_hook(self, stage, layer, begin, width):
        def hook(module, arguments, output):
            self._buffers.keep(stage, layer, _rows(stage, output[0] if isinstance(output, tuple) else output), begin, width)

        return hook

    def _attention(self, layer, forward):
        @functools.wraps(forward)
        def wrapped(*arguments, **options):
            self._layer = layer
            output = forward(*arguments, **options)
            self._layer = None
            return output

        return wrapped

    def _rotary(self, rotate):
        @functools.wraps(rotate)
        def wrapped(q, k, *arguments, **options):
            output = rotate(q, k, *arguments, **options)
            if self._layer is not None:
                heads_first = options.get("unsqueeze_dim", 1) == 1
                for stage, values in zip(("q_post_rope", "k_post_rope"), output):
                    self._buffers.keep(stage, self._layer, values[0].transpose(0, 1) if heads_first else values[0])
            return output

        return wrapped

    def _products(self, multiply, is_grouped):
        """All pairs of token and slot at once; torch.compile shows the product itself to nobody."""

        @functools.wraps(multiply)
        def wrapped(activations, *arguments, **options):
            output = multiply(activations, *arguments, **options)
            if self._watcher is not None:
                self._watcher.all_pairs(activations, output, is_grouped)
            return output

        return wrapped

    def _tap_block(self, layer, block):
        used = self._model.config.num_experts_per_tok
        if not hasattr(block.experts, "__len__"):  # one module with the weights of all experts: transformers 5
            if not _is_plain(block.experts):
                self.reasons.update(dict.fromkeys(EXPERT_STAGES, "experts with biases or norms of their own"))
            for name, module in (("router", block.gate), ("experts", block.experts)):
                watch = functools.partial(self._watcher_class, self._buffers, layer, name, used, block)
                self._replace(module, "forward", self._inside(watch, module.forward, name, layer))
            return
        handle = block.gate.register_forward_hook(self._output_hook("moe_router_logits", layer, 0, None))
        self._undo.append(handle.remove)
        if self._mode == "compile":
            for stage in self.stages():
                if stage.startswith(("moe_expert_", "moe_router_")) and stage != "moe_router_logits":
                    self.reasons.setdefault(stage, "torch.compile leaves the loop over experts of transformers 4 out: take 5")
            return
        watch = functools.partial(self._watcher_class, self._buffers, layer, "block", used, block)
        self._replace(block, "forward", self._inside(watch, block.forward, "block", layer))

    def _inside(self, watch, forward, kind, layer):
        @functools.wraps(forward)
        def wrapped(*arguments, **options):
            if kind == "experts" and len(arguments) == 3:
                self._buffers.keep("moe_router_indices", layer, arguments[1])
                self._buffers.keep("moe_router_weights", layer, arguments[2])
            watcher = watch()
            self._watcher = watcher if kind == "experts" else None
            with self._mode_class(watcher):
                output = forward(*arguments, **options)
            self._watcher = None
            return output

        return wrapped

    def _replace(self, owner, name, value):
        had, before = name in vars(owner), getattr(owner, name)
        setattr(owner, name, value)
        self._undo.append(lambda: setattr(owner, name, before) if had else delattr(owner, name))


def _prefixed(path, prefix):
    names = path.removeprefix("input of ").split(" + ")
    return ("input of " if path.startswith("input of ") else "") + " + ".join(prefix + name for name in names)


def _is_plain(experts):
    """Whether their values are what the products give."""
    return not getattr(experts, "has_bias", False) and not getattr(experts, "has_post_expert_norm", False)


def _rows(stage, values):
    """[rows, ...] of what a module gives for one sequence, [1, rows, ...] or [rows, ...]."""
    heads = stage in ("q_norm", "k_norm")
    return values[0] if values.dim() == (4 if heads else 3) else values


def _watchers(torch):
    """The class of what watches the functions called inside of a router, of experts, or of a block with both, and the mode
    that shows it each of them."""
    functional = torch.nn.functional
    times = (torch.Tensor.mul, torch.Tensor.__mul__, torch.mul)
    softmaxes = (functional.softmax, torch.softmax, torch.Tensor.softmax)
    tops = (torch.topk, torch.Tensor.topk)
    sorts, argsorts = (torch.sort, torch.Tensor.sort), (torch.argsort, torch.Tensor.argsort)

    class Watcher:
        """`kind` is router, experts or block; `used` the number of experts a token. A plain object: torch.compile loses what
        the mode itself remembers."""

        def __init__(self, buffers, layer, kind, used, block):
            self.buffers, self.layer, self.kind, self.used = buffers, layer, kind, used
            self.fused = kind != "block"
            self.interleaved = not getattr(block.experts, "is_concatenated", True)
            self.experts = getattr(block.gate, "num_experts", getattr(block.gate, "out_features", 0))
            self.last = 2 if self.fused else 3  # products of an expert
            self.seen, self.entries, self.top = -1, None, None  # seen: products of these experts; -1: none is ours
            self.ready = _is_plain(block.experts)

        def see(self, func, args, out):
            if self.kind != "experts":
                self.route(func, args, out)
            if self.kind != "router":
                self.compute(func, args, out)

        def route(self, func, args, out):
            if func in softmaxes:
                self.buffers.keep("moe_router_probs", self.layer, out)
            elif func is functional.linear and self.kind == "router" and out.shape[-1] == self.experts:
                self.buffers.keep("moe_router_logits", self.layer, out)
            elif func in tops and self.kind == "block":
                self.top = out[0]  # renormalised in its place
                self.buffers.keep("moe_router_indices", self.layer, out[1])
            elif func is torch.Tensor.to and self.top is not None and args[0] is self.top:
                self.buffers.keep("moe_router_weights", self.layer, out)

        def compute(self, func, args, out):
            if func in sorts and args[0].dim() == 1:
                self.entries = out[1]
            elif func in argsorts and self.entries is None:
                self.entries = out
            elif func is torch.where and len(args) == 1 and self.ready:  # the pairs of one expert
                self.entries, self.seen = out[1] * self.used + out[0], 0
            elif func is functional.linear and self.seen >= 0:
                self.product(args[0], out)
            elif func in times and self.seen == self.last:
                self.seen += 1
                self.scatter("moe_expert_weighted", out)

        def all_pairs(self, activations, out, is_grouped):
            if self.ready and (self.entries is not None) == is_grouped:  # grouped: in an order that was seen
                self.seen = max(self.seen, 0)
                self.product(activations, out)

        def product(self, activations, out):
            self.seen += 1
            if self.seen == self.last:
                self.scatter("moe_expert_swiglu", activations)
                self.scatter("moe_expert_out", out)
            elif self.seen == 1 and self.fused and self.interleaved:
                self.scatter("moe_expert_gate", out[..., ::2])
                self.scatter("moe_expert_up", out[..., 1::2])
            elif self.seen == 1 and self.fused:
                gate, up = out.chunk(2, dim=-1)
                self.scatter("moe_expert_gate", gate)
                self.scatter("moe_expert_up", up)
            elif self.seen < self.last:
                self.scatter("moe_expert_gate" if self.seen == 1 else "moe_expert_up", out)

        def scatter(self, stage, values):
            self.buffers.scatter(stage, self.layer, self.used, values, self.entries)

    class Mode(torch.overrides.TorchFunctionMode):
        def __init__(self, watcher):
            super().__init__()
            self.watcher = watcher

        def __torch_function__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            self.watcher.see(func, args, out)
            return out

    return Watcher, Mode
