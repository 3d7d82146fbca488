# SPDX-License-Identifier: MIT
"""Records a PyTorch model for `moe-diag judge MODEL DUMP`: transformers' Qwen3-MoE and Qwen2-MoE as they are, others by name.

    import moe_diag

    recording = moe_diag.record(model, ids, "dump")                             # one forward pass over a prompt
    recording = moe_diag.record(model, ids, "dump", chunk=64, max_new_tokens=8) # by 64 tokens, then 8 more, greedily
    recording = moe_diag.record(model, ids, "dump", mode="graph")               # as replays of CUDA graphs
    print(recording)                                                            # what was recorded, and what not and why

The model runs twice: without the recording, then with it. `recording.logits_changed_by` is what the recording changed, as the
largest relative L2 difference of a call's last logits. It is 0 where both runs gave the same bits.
"""

from __future__ import annotations

import inspect
import math
import sys
from dataclasses import dataclass, field

import numpy

from .recorder import RecordError, Recorder, _stage_filter
from .taps import MARK, UNSEEN, Buffers, Taps

__all__ = ["Recording", "record"]

MODES = ("eager", "compile", "graph")


@dataclass(frozen=True)
class Recording:
    """What `record` wrote. `print` shows all of it."""

    path: object
    recorded: dict = field(repr=False)  # layers by stage; [None] for a stage of the whole model
    missing: dict = field(repr=False)  # why, by stage
    tokens: list = field(repr=False)  # of each request, those generated among them
    calls: int = 0
    mode: str = "eager"
    logits_changed_by: float | None = None  # None: not compared

    def __str__(self):
        changed = "not compared" if self.logits_changed_by is None else f"changed by {self.logits_changed_by:.3g}"
        lines = [f"{self.path}: {self.calls} calls, {self.mode}; logits {changed} by the recording"]
        for stage, layers in self.recorded.items():
            lines.append(f"  recorded  {stage:<20} " + ("" if layers == [None] else f"layers {_ranges(layers)}"))
        lines += [f"  not       {stage:<20} {why}" for stage, why in self.missing.items()]
        return "\n".join(line.rstrip() for line in lines)


def record(model, ids, path, layers=None, stages=None, max_new_tokens=0, chunk=None, mode="eager", *, modules=None, last=None,
           engine=None, numerics=None, stored=None, check=True, compile_options=None):  # fmt: skip
    """Runs the model over `ids`, a list of tokens or several of them, one request after the other, and writes a dump.

    `layers`, `stages`, `last`: filters, as of Recorder. They bound the memory on the device too: one call's rows of all stages.
    `chunk`: tokens of a call of the prompt; `max_new_tokens`: calls of one token behind it, each the most likely one.
    `mode`: "eager", "compile" (torch.compile, with `compile_options`) or "graph" (a CUDA graph for each size of a call).
    `modules`: {stage: path} of modules with `{layer}`, "input of PATH" or "PATH + PATH", for models of other names.
    `check=False` leaves out the run without the recording. Raises RecordError where nothing can be recorded."""
    import torch

    model = getattr(model, "_orig_mod", model)  # of torch.compile
    if mode not in MODES:
        raise RecordError(f"mode: expected one of {', '.join(MODES)}, found {mode!r}")
    requests = _requests(ids)
    if chunk is not None and chunk < 1 or max_new_tokens < 0:
        raise RecordError(f"expected chunk from 1 on and max_new_tokens from 0 on, found {chunk} and {max_new_tokens}")
    plans = [_plan(len(tokens), chunk, max_new_tokens) for tokens in requests]
    wanted = _stage_filter(stages)
    was_training = model.training
    model.eval()
    recorder = Recorder(path, engine=engine or _engine(torch, model), numerics=numerics or _numerics(model, "bf16", "f32"),
                        stored=stored or _numerics(model, "hf", "f32"), layers=layers, stages=stages, last=last,
                        model=getattr(getattr(model, "config", None), "_name_or_path", None) or None)  # fmt: skip
    try:
        with torch.no_grad(), recorder:
            runner = lambda: _Runner(torch, model, mode, plans, compile_options)  # noqa: E731
            before = _generate(runner(), requests, plans) if check else None
            buffers = Buffers(torch, max(rows for plan in plans for _, rows in plan), recorder.wants)
            taps = Taps(torch, model, buffers, modules, mode)
            with taps:
                _make(torch, model, buffers, requests[0], plans[0])
                if not buffers.arrays:
                    raise RecordError(f"{path}: nothing to record: no wanted stage was seen in {type(model).__name__}; `modules` "
                                      "names modules of other models")  # fmt: skip
                writer = _Writer(recorder, buffers, mode, _kernel(model))
                tokens = None if before is None else before.tokens
                after = _generate(runner(), requests, plans, tokens, writer)
            changed = None if before is None else _difference(before.logits, after.logits)
            missing = {stage: taps.reasons.get(stage, UNSEEN) for stage in taps.stages() if wanted is None or stage in wanted}
            missing.update(writer.unwritten)
            missing.update({stage: f"no module of {type(model).__name__} has it" for stage in wanted or () if stage not in missing})
            missing = {stage: why for stage, why in missing.items() if stage not in writer.layers}
            recorder.facts.update(logits_changed_by=changed if changed is None or math.isfinite(changed) else str(changed),
                                  mode=mode, not_recorded=missing)  # fmt: skip
    finally:
        model.train(was_training)
        if mode == "compile":
            torch._dynamo.reset()
    recorded = {stage: sorted(found, key=lambda layer: -1 if layer is None else layer) for stage, found in writer.layers.items()}
    return Recording(recorder.path, recorded, missing, after.tokens, sum(map(len, plans)), mode, changed)


class _Runner:
    """Runs calls of a model in one mode."""

    def __init__(self, torch, model, mode, plans, compile_options=None):
        self._torch, self._model, self._mode = torch, model, mode
        self._parameters = inspect.signature(model.forward).parameters
        self._device = next(model.parameters()).device
        self._total = max(plan[-1][0] + plan[-1][1] for plan in plans)
        # transformers calls it past_key_values, and cache since 5.24.
        self._cache_name = next((name for name in ("past_key_values", "cache") if name in self._parameters), None)
        self._has_cache = self._cache_name is not None and hasattr(model, "config")
        if not self._has_cache and any(len(plan) > 1 for plan in plans):
            raise RecordError(f"{type(model).__name__} takes no cache: expected one call, without chunk and max_new_tokens")
        if mode == "graph" and self._device.type != "cuda":
            raise RecordError(f'mode="graph": expected a model on a CUDA device, found {self._device}')
        self._needs_cache = self._has_cache and (mode == "graph" or any(len(plan) > 1 for plan in plans))
        self._cache, self._graphs, self._run = None, {}, model
        if mode == "compile":
            torch._dynamo.reset()  # what was compiled without hooks would be taken for the model with them
            self._run = torch.compile(model, **{"dynamic": False, **(compile_options or {})})

    def begin(self):
        """Forgets the request before."""
        if not self._needs_cache or self._mode == "eager":
            self._cache = None
        elif self._cache is None:
            self._cache = _static_cache(self._model, self._total)
            self._call(self._model, *self._inputs([0], 0))  # makes its tensors
            self._cache.reset()
        else:
            self._cache.reset()

    def step(self, tokens, first, prepare):
        """The logits of a call, [rows, vocabulary]. `prepare` is called right before it runs."""
        ids, positions = self._inputs(tokens, first)
        if self._mode != "graph":
            prepare()
            return self._call(self._run, ids, positions)
        if len(tokens) not in self._graphs:
            self._graphs[len(tokens)] = self._capture(ids, positions)
        graph, static, output = self._graphs[len(tokens)]
        for inside, given in zip(static, (ids, positions)):
            inside.copy_(given)
        prepare()
        graph.replay()
        return output

    def _capture(self, ids, positions):
        """A graph of the model for calls of this size; the cache stays as it was."""
        try:
            return self._captured(ids, positions)
        except RuntimeError as error:
            raise RecordError(f"a call of {ids.shape[1]} tokens cannot be captured in a CUDA graph: {str(error).splitlines()[0]}. "
                              "Experts in f32 need model.set_experts_implementation('batched_mm'), those of transformers 4 "
                              "loop: take 5") from error  # fmt: skip

    def _captured(self, ids, positions):
        torch = self._torch
        before = [(tensor, tensor.clone()) for tensor in _tensors(torch, self._cache)]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self._call(self._model, ids, positions)
                self._restore(before)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self._call(self._model, ids, positions)
        self._restore(before)
        return graph, (ids, positions), output

    @staticmethod
    def _restore(tensors):
        for tensor, value in tensors:
            tensor.copy_(value)

    def _inputs(self, tokens, first):
        torch = self._torch
        ids = torch.tensor([list(tokens)], dtype=torch.long, device=self._device)
        return ids, torch.arange(first, first + ids.shape[1], device=self._device)

    def _call(self, run, ids, positions):
        if not self._has_cache:
            output = run(ids)
            return getattr(output, "logits", output)[0]
        options = {"use_cache": self._needs_cache}
        if self._needs_cache and self._cache is not None:
            options[self._cache_name] = self._cache
        if "position_ids" in self._parameters:
            options["position_ids"] = positions.unsqueeze(0)
        if "cache_position" in self._parameters:
            options["cache_position"] = positions
        output = run(input_ids=ids, **options)
        if self._needs_cache and self._mode == "eager":
            self._cache = getattr(output, self._cache_name)
        return output.logits[0]


class _Writer:
    """Writes the buffers of each call to the dump."""

    def __init__(self, recorder, buffers, mode, kernel):
        self._recorder, self._buffers, self._mode, self._kernel = recorder, buffers, mode, kernel
        self.layers, self.unwritten = {}, {}

    def prepare(self):
        self._buffers.mark()

    def write(self, request, tokens, first):
        facts = {"kernel": self._kernel, "graph_size": len(tokens) if self._mode == "graph" else None}
        with self._recorder.call(request, first, tokens, self._mode, **facts) as call:
            for (stage, layer), buffer in self._buffers.arrays.items():
                rows = buffer[: len(tokens)]
                if stage in self.unwritten or self._is_unwritten(stage, layer, rows, call.number):
                    continue
                call(stage, layer, rows)
                self.layers.setdefault(stage, set()).add(layer)

    def _is_unwritten(self, stage, layer, rows, number):
        """Whether a row is as it was marked: then what ran is not what was seen in the eager pass."""
        found = rows.contiguous().view(self._buffers._torch.uint8).flatten(1).cpu().numpy()
        if not (found == MARK).all(axis=1).any():
            return False
        if number or stage in self.layers:
            where = "" if layer is None else f" of layer {layer}"
            raise RecordError(f"call {number}: {stage}{where}: a row was not written, though rows of it were before: leave it out "
                              "by stages=")  # fmt: skip
        self.unwritten[stage] = f"was seen in eager mode, and not in mode {self._mode}"
        return True


@dataclass
class _Run:
    tokens: list
    logits: list


def _generate(runner, requests, plans, tokens=None, writer=None):
    """Runs all calls. Tokens behind a prompt are the most likely ones, or those of `tokens`."""
    done, logits = [list(request) for request in requests], []
    for number, plan in enumerate(plans):
        runner.begin()
        for first, rows in plan:
            if tokens is not None:
                done[number] = list(tokens[number][: first + rows])
            now = done[number][first : first + rows]
            found = runner.step(now, first, writer.prepare if writer else lambda: None)
            if writer:
                writer.write(str(number), now, first)
            logits.append(found[-1].float().cpu().numpy().copy())
            if len(done[number]) == first + rows and (first, rows) != plan[-1]:
                done[number].append(int(numpy.nan_to_num(logits[-1], nan=-numpy.inf).argmax()))
    return _Run(done, logits)


def _make(torch, model, buffers, tokens, plan):
    """An eager pass over the first call, in which the buffers are made."""
    buffers.making = True
    try:
        _generate(_Runner(torch, model, "eager", [plan[:1]]), [tokens], [plan[:1]])
    finally:
        buffers.making = False


def _plan(prompt, chunk, more):
    """(first position, rows) of each call."""
    chunk = chunk or prompt
    return [(first, min(chunk, prompt - first)) for first in range(0, prompt, chunk)] + [(prompt + i, 1) for i in range(more)]


def _requests(ids):
    """Lists of tokens, of a list or an array of them, or several."""
    plain = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    if plain and not hasattr(plain[0], "__len__"):
        plain = [plain]
    plain = [request.tolist() if hasattr(request, "tolist") else list(request) for request in plain]
    if not plain or not all(plain) or not all(isinstance(token, int) for request in plain for token in request):
        raise RecordError("ids: expected a list of tokens, or several, none of them empty")
    return plain


def _static_cache(model, total):
    from transformers import StaticCache

    known = inspect.signature(StaticCache.__init__).parameters
    first = next(model.parameters())
    older = {"max_batch_size": 1, "device": first.device, "dtype": first.dtype} if "max_batch_size" in known else {}
    return StaticCache(config=model.config, max_cache_len=total, **older)


def _tensors(torch, cache):
    """The tensors that a static cache changes in place."""
    return [value for layer in cache.layers for value in vars(layer).values() if isinstance(value, torch.Tensor)]


def _kernel(model):
    """Which implementations the model says that it uses: errors are grouped by it."""
    config = getattr(model, "config", None)
    names = [getattr(config, name, None) for name in ("_attn_implementation", "_experts_implementation")]
    return ", ".join(name for name in names if name) or None


def _engine(torch, model):
    names = [type(model).__name__, f"torch {torch.__version__}"]
    if type(model).__module__.startswith("transformers."):
        names.insert(1, f"transformers {sys.modules['transformers'].__version__}")
    return ", ".join(names)


def _numerics(model, bf16, f32):
    """One of these words, by the type of the weights; None for others."""
    dtype = str(next(model.parameters()).dtype)
    return {"torch.bfloat16": bf16, "torch.float32": f32}.get(dtype)


def _difference(before, after):
    """The largest relative L2 difference of two lists of rows; infinite where only one of the two is NaN."""
    worst = 0.0
    for a, b in zip(before, after):
        if a.tobytes() == b.tobytes():
            continue
        if (numpy.isfinite(a) != numpy.isfinite(b)).any():
            return math.inf
        a, b = (numpy.nan_to_num(x.astype(numpy.float64)) for x in (a, b))
        worst = max(worst, float(numpy.linalg.norm(a - b) / max(numpy.linalg.norm(a), 1e-300)))
    return worst


def _ranges(layers):
    """0 to 3, 5"""
    parts = []
    for layer in layers:
        if parts and layer == parts[-1][1] + 1:
            parts[-1][1] = layer
        else:
            parts.append([layer, layer])
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in parts)
