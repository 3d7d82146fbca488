# SPDX-License-Identifier: MIT
"""The faults that numpy_engine.py can have, and where a recording shows them."""

import dataclasses

import numpy


@dataclasses.dataclass
class Kind:
    """`stages`: which go wrong by themselves, in forward order; the first that is recorded shows it. `causes`: the words of
    docs/diagnosis.md that are right, where a recording has the step's inputs. `where`: engine or recording."""

    stages: tuple
    causes: tuple
    where: str = "engine"
    # Stages that the fault changes without changing the layer's output, so that a recording without them is sound.
    harmless_below: tuple = ()


GATE_UP = ("moe_expert_gate", "moe_expert_up")
FAULTS = {
    "swap": Kind(GATE_UP, ("wrong_tensor",)),
    "norenorm": Kind(("moe_router_weights",), ("function", "scale", "skipped")),
    "expert5": Kind(("moe_expert_out",), ("scale", "operator")),
    "global_ids": Kind((*GATE_UP, "moe_expert_out"), ("zero", "dropped_expert")),
    "missing_rank": Kind(("moe_ffn_out",), ("dropped_expert", "partial_sum")),
    "below16": Kind(("moe_expert_out",), ("partial_sum",)),
    "nan": Kind(("moe_expert_out",), ("nonfinite_origin",)),
    "rope_offset": Kind(("q_post_rope", "k_post_rope"), ("shifted_position",), harmless_below=("q_post_rope", "k_post_rope")),
    "late_window": Kind(("attn_softmax",), ("window",)),
    "map_swap": Kind((), (), "recording"),
    "row_shift": Kind((), (), "recording"),
    "zero_rows": Kind((), (), "recording"),
}
# Pairs of stages of the same shape, for recordings that have both.
PAIRS = (GATE_UP, ("moe_expert_out", "moe_expert_weighted"), ("q_norm", "q_post_rope"))


@dataclasses.dataclass
class Fault:
    """One planted fault. `layer`: None for all layers, in recordings only."""

    name: str | None
    layer: int | None = None
    stages: tuple = ()
    expert: int | None = None
    spent: bool = False  # a NaN is a mishap of one call; the other faults stay

    @property
    def stage(self):
        return self.stages[0]

    def is_at(self, name, layer):
        return self.name == name and layer == self.layer

    def is_of(self, name, layer, expert):
        return self.is_at(name, layer) and expert == self.expert

    def choose_expert(self, layer, ids, experts):
        """Takes the expert that most rows of the first call chose, unless one is given."""
        if self.name in ("swap", "expert5", "nan") and layer == self.layer and self.expert is None:
            self.expert = int(numpy.bincount(ids.ravel(), minlength=experts).argmax())

    def rewritten(self, stage, layer, values):
        """The name and values under which a stage is recorded."""
        if self.name not in FAULTS or FAULTS[self.name].where == "engine" or stage not in self.stages:
            return stage, values
        if self.layer is not None and layer != self.layer:
            return stage, values
        if self.name == "map_swap":
            return self.stages[1 - self.stages.index(stage)], values
        if self.name == "row_shift":
            return stage, numpy.roll(values, 1, axis=0)
        values = values.copy()
        values[len(values) // 2 :] = 0
        return stage, values



def make(name, layer, recorded, stages=None, expert=None):
    """A fault that a recording of these stages can have, or an error that says why it cannot."""
    if name is None:
        return Fault(None)
    kind = FAULTS[name]
    if kind.where == "engine" and layer is None:
        raise ValueError(f"{name}: expected a layer")
    if kind.where == "engine":
        return Fault(name, layer, tuple(stages or kind.stages), expert)
    if name == "map_swap":
        stages = stages or next((pair for pair in PAIRS if set(pair) <= set(recorded)), ())
    else:
        stages = stages or ["moe_ffn_out" if "moe_ffn_out" in recorded else "post_ffn_residual"]
    missing = [stage for stage in stages if stage not in recorded]
    if missing or len(stages) != (2 if name == "map_swap" else 1):
        raise ValueError(f"{name}: {'two stages' if name == 'map_swap' else 'one stage'} of the recording wanted, found "
                         f"{', '.join(stages) or 'none'}")  # fmt: skip
    return Fault(name, layer, tuple(stages), expert)


def site(fault, recorded, layer_stages):
    """Where a fault is, and the first recorded stage that shows it (`shows`); whether that is the wrong stage itself
    (`exact`); null where the recording is as sound as without."""
    if fault.name is None:
        return {"fault": None, "where": None, "shows": None}
    kind = FAULTS[fault.name]
    found = {"fault": fault.name, "where": kind.where, "layer": fault.layer, "stage": fault.stage, "stages": list(fault.stages),
             "expert": fault.expert, "causes": list(kind.causes)}  # fmt: skip
    later = layer_stages[layer_stages.index(fault.stage) :]
    shows = next((s for s in later if s in recorded and s != "moe_router_indices"), None)
    if kind.harmless_below and not set(kind.harmless_below) & set(recorded):
        shows = None
    return {**found, "shows": shows, "exact": shows == fault.stage}
