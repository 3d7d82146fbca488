# SPDX-License-Identifier: MIT
"""Judges a kernel on the cases that `moe-diag cases` wrote.

    def my_kernel(case):
        x, ids, scale = (case.inputs[name] for name in ("ffn_norm", "moe_router_indices", "moe_router_weights"))
        w = case.weights          # by name within the layer; case.blocks has the bytes as the model's file has them
        return fused_moe(x, ids, scale, w["ffn_gate_exps"], w["ffn_up_exps"], w["ffn_down_exps"])

    moe_diag.check_kernel(my_kernel, "cases")                                  # numpy arrays
    moe_diag.check_kernel(my_kernel, "cases", arrays="torch", device="cuda")   # torch tensors

The function is called once a case and returns the output: an array of ml_dtypes or a torch tensor in its own type, or a numpy
array; bits of BF16 as uint16 with `output="BF16"`. Each output goes to `out.safetensors` of its case, and `moe-diag judge` says
whether all of them hold. Where they do not, KernelFalsified, an AssertionError, has what it says.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass, field

from .tensors import load_safetensors, save_safetensors

__all__ = ["Case", "KernelFalsified", "ProgramError", "Report", "check_kernel", "open_cases"]

FORMAT, NEWEST_VERSION = "moe-diag cases", 1
PROGRAM_VARIABLE = "MOE_DIAG_EXE"


class ProgramError(RuntimeError):
    """The program moe-diag is not found, or it failed before it could judge; the message says what to do."""


class KernelFalsified(AssertionError):
    """What the kernel wrote does not hold. The message is the report of `moe-diag judge`, `report` all that is known."""

    def __init__(self, report):
        super().__init__("\n" + report.text)
        self.report = report


@dataclass(frozen=True)
class Case:
    """What a kernel reads for one case, and the shape of what it writes. Weights go by their names within the layer:
    "ffn_down_exps" for "blk.3.ffn_down_exps.weight"."""

    name: str
    layer: int  # -1: the span is of the whole model
    rows: int
    routing: str  # model, one, none: how the rows choose experts
    inputs: dict = field(repr=False)  # arrays by stage; BF16 as float32 in numpy, as bfloat16 in torch
    weights: dict = field(repr=False)  # values, float32: [experts, rows, columns], [rows, columns] or [columns]
    blocks: dict = field(repr=False)  # the same weights' bytes, uint8, as the model's file has them
    types: dict = field(repr=False)  # block type of each: "Q4_K"
    output: str = ""  # the stage that the kernel writes
    shape: tuple = ()  # of the output, rows first
    model: dict = field(default_factory=dict, repr=False)  # experts, used, rms_eps, rope_theta; see case.json
    first_position: int = 0  # of row 0: the number of positions that are in the caches already


@dataclass(frozen=True)
class Report:
    """What `moe-diag judge` said. True where every case held."""

    outcome: str  # held, falsified, refused or untested
    text: str = field(repr=False)  # for a person
    verdict: dict = field(repr=False)  # the same for a program; docs/judge-a-kernel.md

    def __bool__(self):
        return self.outcome == "held"

    @property
    def cases(self):
        """By name: outcome, worst row, failing rows and columns, cause."""
        return {case["name"]: case for case in self.verdict["cases"]}

    @property
    def causes(self):
        """The causes named, each once."""
        return list(dict.fromkeys(case["cause"] for case in self.verdict["cases"] if case.get("cause")))


def check_kernel(function, folder, *, arrays="numpy", device=None, output=None, check=True, program=None, model=None):
    """Calls function(case) for every case of the folder, writes what it returns, and has `moe-diag judge` judge it. Returns
    its Report; raises KernelFalsified unless every case held, or returns that report where `check` is False.

    arrays: "numpy", or "torch" for tensors on `device`. output: the type that is written, "BF16" for example, where the
    function returns bits or wider values; else its own. program: the path of moe-diag, else that of the variable
    MOE_DIAG_EXE, else the one installed with this package, else the one on the PATH. model: where the model is now, if it
    has moved."""
    program = find_program(program)
    folder = pathlib.Path(folder)
    cases = open_cases(folder, arrays=arrays, device=device)
    for entry in _index(folder)["cases"]:  # nothing of an earlier kernel is judged
        (folder / entry["out"]["file"]).unlink(missing_ok=True)
    for case in cases:
        try:
            values = function(case)
        except Exception as error:
            if hasattr(error, "add_note"):
                error.add_note(f"moe_diag: in case {case.name}, {case.rows} rows")
            raise
        _write(folder, case, values, output)
    report = judge(folder, program=program, model=model)
    if check and not report:
        raise KernelFalsified(report)
    return report


def open_cases(folder, *, arrays="numpy", device=None):
    """The cases of a folder one after the other, with what a kernel reads. Weights are read once a layer."""
    if arrays not in ("numpy", "torch"):
        raise ValueError(f'arrays: expected "numpy" or "torch", found {arrays!r}')
    folder = pathlib.Path(folder)
    load = lambda path: load_safetensors(path, torch=arrays == "torch", device=device)  # noqa: E731
    index = _index(folder)
    layers = {layer["layer"]: layer for layer in index["layers"]}
    of_layer, weights = None, ({}, {}, {})
    for entry in index["cases"]:
        if entry["layer"] != of_layer:
            of_layer, weights = entry["layer"], _weights(folder, layers[entry["layer"]], load)
        yield Case(
            name=entry["name"], layer=entry["layer"], rows=entry["rows"], routing=entry["routing"],
            inputs=load(folder / entry["in"]["file"]), weights=weights[0], blocks=weights[1], types=weights[2],
            output=entry["out"]["tensor"], shape=tuple(entry["out"]["shape"]), model=index["model"],
            first_position=entry.get("first_position", 0),
        )  # fmt: skip


def judge(folder, *, program=None, model=None):
    """Runs `moe-diag judge` on a folder of cases. Raises ProgramError where it could not judge."""
    with tempfile.TemporaryDirectory() as scratch:
        file = pathlib.Path(scratch) / "verdict.json"
        command = [find_program(program), "judge", str(folder), "--json", str(file)]
        if model is not None:
            command += ["--model", str(model)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if not file.is_file():
            raise ProgramError(f"{' '.join(command)}: exit {run.returncode}\n{run.stderr or run.stdout}")
        verdict = json.loads(file.read_text(encoding="utf-8"))
    outcome = {0: "held", 1: "falsified", 2: "refused", 3: "untested"}.get(run.returncode, "refused")
    return Report(outcome, run.stdout, verdict)


def find_program(program=None):
    """The path of moe-diag: the given one, that of MOE_DIAG_EXE, the one installed with this package, or that on the PATH."""
    for name, given in (("program", program), (PROGRAM_VARIABLE, os.environ.get(PROGRAM_VARIABLE))):
        if not given:
            continue
        found = shutil.which(given)
        if not found:
            raise ProgramError(f"{name}: {given}: there is no such program: name the moe-diag that you installed")
        return found
    here = pathlib.Path(__file__).resolve().parent
    installed = [pathlib.Path(sysconfig.get_path("scripts")), pathlib.Path(sys.prefix) / "bin"]  # a wheel
    if here.parent.parts[-3:] == ("share", "moe-diag", "python"):  # cmake --install
        installed.insert(0, here.parents[3] / "bin")
    for folder in [*map(str, installed), None]:
        found = shutil.which("moe-diag", path=folder)
        if found:
            return found
    raise ProgramError(
        f"moe-diag is not on the PATH: install it, or name it by program=, or by the environment variable {PROGRAM_VARIABLE}"
    )


def _index(folder):
    file = folder / "case.json"
    if not file.is_file():
        raise ProgramError(f"{folder}: holds no cases: write them with `moe-diag cases MODEL --span ... --out {folder}`")
    index = json.loads(file.read_text(encoding="utf-8"))
    if index.get("format") != FORMAT or index.get("version", 0) > NEWEST_VERSION:
        raise ProgramError(f"{file}: expected format {FORMAT!r}, version up to {NEWEST_VERSION}: take the package of the "
                           "moe-diag that wrote it")  # fmt: skip
    return index


def _weights(folder, layer, load):
    """Values, bytes and types of a layer's weights, by their names within it."""
    values, blocks, types = {}, {}, {}
    tensors = load(folder / layer["file"]) if layer["file"] else {}
    for weight in layer["weights"]:
        name = re.sub(r"^blk\.\d+\.", "", weight["name"]).removesuffix(".weight")
        blocks[name], types[name] = tensors[weight["name"]], weight["type"]
        if weight["f32"]:
            values[name] = tensors[weight["f32"]]
    return values, blocks, types


def _write(folder, case, values, output):
    if values is None:
        raise TypeError(f"case {case.name}: the kernel returned None: expected its output, of shape {list(case.shape)}")
    types = {case.output: output} if output else None
    save_safetensors(folder / case.name / "out.safetensors", {case.output: values}, types)
