#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Records engines, sound and faulty, and has each recording judged: is a sound one held, is a fault named where it is?

    sweep.py --exe build/dev/bin/moe-diag                          # the sample: some two dozen cases
    sweep.py --exe build/dev/bin/moe-diag --full                   # 20 seeds sound, all faults
    sweep.py --exe ... --models massive --numerics bf16 --recorded layers --faults none swap --seeds 0..3 --keep out

Prints a line a case and totals. Exit 1 when a sound engine is not held, or a fault is missed or named elsewhere.
"""

import argparse
import collections
import dataclasses
import json
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import numpy_engine  # noqa: E402  # first: it sets the threads of numpy
import faults  # noqa: E402
import gguf  # noqa: E402
import numpy  # noqa: E402

HELD, FALSIFIED, USAGE, UNTESTED = range(4)  # exit codes
SOUND = "none"
# Causes of divergences that are no mistake of a step: they follow from another one, or from equal logits.
NO_MISTAKE = {"inherited", "nonfinite_inherited", "oracle_not_finite", "routing_tie", "routing_drift", "drift", "numerics"}
SYNTH = {"tiny": [], "massive": ["--quant", "f32"], "wide": ["--preset", "qwen3-30b-a3b", "--layers", "4"]}
MASSIVE = {"layer": 1, "dimensions": [7, 110], "factor": 400}  # of the experts' down matrices: values 1000 times the median


@dataclasses.dataclass(frozen=True)
class Case:
    model: str
    seed: int
    tokens: int
    numerics: str
    recorded: str
    fault: str
    layer: int | None

    def __str__(self):
        layer = "" if self.layer is None else f" at layer {self.layer}"
        return f"{self.model:7} seed {self.seed:<3} {self.tokens:4} tokens  {self.numerics:4}  {self.recorded:11}  {self.fault}{layer}"


@dataclasses.dataclass
class Result:
    right: bool
    words: str  # the outcome, for people


def judged(site, recorded, code, verdict, output):
    """Whether a case came out as it should: `site` is what the engine says of itself, the rest is of `moe-diag judge`."""
    if site["where"] == "recording":
        return judged_recording(site, code, output)
    if site["shows"] is None:
        right = code == HELD or code == UNTESTED and recorded == "layers_only"
        return Result(right, "held" if code == HELD else f"SOUND, but {found_words(code, verdict, output)}")
    if code in (HELD, UNTESTED) and recorded == "layers_only" and site["fault"] != "nan":
        return Result(True, f"{'held' if code == HELD else 'untested'}: not to be seen without the experts' indices")
    if code == HELD and recorded == "layers" and site["fault"] == "expert5":
        return Result(True, "held: beside the rounding of a whole layer in 16 or 8 bits it is not to be seen")
    expected = f"expected layer {site['layer']} {site['shows']}"
    if code != FALSIFIED:
        return Result(False, f"MISSED: {found_words(code, verdict, output)}; {expected}")
    first = verdict.get("first_divergence") or {}
    if (first.get("layer"), first.get("stage")) != (site["layer"], site["shows"]):
        return Result(False, f"NAMED ELSEWHERE: {found_words(code, verdict, output)}; {expected}")
    others = other_sites(site, verdict)
    if others:
        return Result(False, f"named, and ELSEWHERE: {', '.join(others)}; {expected}")
    cause = cause_at(verdict, first)
    if site["exact"] and cause not in (*site["causes"], "operator"):
        return Result(False, f"named, but its CAUSE is {cause}: expected {' or '.join(site['causes'])}; {expected}")
    return Result(True, f"layer {first['layer']} {first['stage']}, {cause or 'no cause'}")


def judged_recording(site, code, output):
    """A wrong recording is no verdict on the engine: exit 2, and the stage is named."""
    named = [stage for stage in site["stages"] if stage in output]
    if code != USAGE:
        return Result(False, f"the RECORDING is wrong at {' and '.join(site['stages'])}, but exit {code}")
    if not named:
        return Result(False, f"refused, but WITHOUT {' or '.join(site['stages'])}: {last_line(output)}")
    return Result(True, f"refused: {last_line(output)}")


def found_words(code, verdict, output):
    first = (verdict or {}).get("first_divergence")
    if code in (HELD, UNTESTED):
        return "held" if code == HELD else "untested"
    if code != FALSIFIED or not first:
        return f"exit {code}: {last_line(output)}"
    return f"layer {first.get('layer')} {first.get('stage')}, {cause_at(verdict, first) or 'no cause'}"


def mistakes(verdict):
    return [d for d in verdict.get("divergences") or [] if d.get("cause") not in NO_MISTAKE]


def cause_at(verdict, first):
    """The cause that the verdict has for its first divergence."""
    for divergence in verdict.get("divergences") or []:
        if (divergence.get("layer"), divergence.get("stage")) == (first.get("layer"), first.get("stage")):
            return divergence.get("cause")
    for falsifier in verdict.get("falsifiers") or []:
        if falsifier.get("id") == first.get("falsifier"):
            return (falsifier.get("explanation") or {}).get("cause")
    return None


def other_sites(site, verdict):
    """Steps that a verdict calls wrong, which are right. Behind a NaN all is possible."""
    if site["fault"] == "nan":
        return []
    right = {(site["layer"], stage) for stage in (*site["stages"], site["shows"])}
    if site["shows"] == "ffn_norm":  # behind attention, which is not recorded, stands another stage as well
        right.add((site["layer"], "post_ffn_residual"))
    return sorted({f"layer {d['layer']} {d['stage']} ({d['cause']})" for d in mistakes(verdict)
                   if (d.get("layer"), d.get("stage")) not in right})  # fmt: skip


def nearest_bound(verdict):
    """The largest share of its bound that a claim of at_most used; the room that is left for sound engines."""
    shares = []
    for falsifier in (verdict or {}).get("falsifiers") or []:
        worst = falsifier.get("worst") or {}
        bound = worst.get("bound") or falsifier.get("bound") or {}
        if bound.get("kind") == "at_most" and bound.get("value") and worst.get("value") is not None:
            shares.append((float(worst["value"]) / float(bound["value"]), worst.get("layer"), worst.get("stage")))
    return max(shares, key=lambda share: share[0], default=None)


def last_line(output):
    lines = [line for line in output.splitlines() if line.strip()]
    return lines[-1].strip()[:160] if lines else "nothing was printed"


# ---- cases ----


def make_cases(a):
    """Sound engines of all seeds, faulty ones of as many as wanted; the layers of faults go round."""
    layers = 4  # of every model here
    cases = []
    for model in a.models:
        for seed in a.seeds:
            for numerics in a.numerics:
                for recorded in a.recorded:
                    for fault in a.faults:
                        if fault != SOUND and seed - a.seeds[0] >= a.fault_seeds:
                            continue
                        if fault == "map_swap" and not any(set(p) <= set(numpy_engine.RECORDED[recorded]) for p in faults.PAIRS):
                            continue
                        engine = fault != SOUND and faults.FAULTS[fault].where == "engine"
                        layer = (seed + list(faults.FAULTS).index(fault)) % layers if engine else None
                        cases += [Case(model, seed, tokens, numerics, recorded, fault, layer) for tokens in a.tokens]
    return sample(cases, a.sample) if a.sample else cases


def sample(cases, count):
    """Some of the cases, always the same ones, with as many of each fault."""
    shuffled = random.Random(17).sample(cases, len(cases))
    seen, turns = collections.Counter(), {}
    for case in shuffled:
        turns[case] = seen[case.fault]
        seen[case.fault] += 1
    chosen = set(sorted(shuffled, key=turns.get)[:count])
    return [case for case in cases if case in chosen]


def model_of(case, a, root):
    path = root / f"{case.model}_{case.seed}.gguf"
    if not path.exists():
        for other in root.glob("wide_*.gguf"):
            other.unlink()  # 2 GB each
        run([a.exe, "synth", path, *SYNTH[case.model], "--seed", case.seed])
        if case.model == "massive":
            make_massive(path)
    return path


def make_massive(path):
    """Makes a few dimensions of the residual stream huge, as trained models have them."""
    reader = gguf.GGUFReader(path, "r+")
    (tensor,) = [t for t in reader.tensors if t.name == f"blk.{MASSIVE['layer']}.ffn_down_exps.weight"]
    tensor.data[:, MASSIVE["dimensions"]] *= numpy.float32(MASSIVE["factor"])
    tensor.data.flush()


def requests_of(case):
    """A prompt in two calls, of 16 rows and more and of fewer, another as one; some tokens that follow. At full width, where
    each call decodes all weights and the head is slow, one prompt, in two calls only where that makes a difference."""
    random_tokens = numpy.random.default_rng([case.seed, case.tokens]).integers(0, 512, case.tokens + 24).tolist()
    first, second = random_tokens[: case.tokens], random_tokens[case.tokens :]
    chunk = max(case.tokens - 14, 1)
    if case.model == "wide":
        return [{"request": "a", "tokens": first, "chunk": chunk if case.fault == "below16" else None}]
    return [{"request": "a", "tokens": first, "chunk": chunk, "generate": 3}, {"request": "b", "tokens": second, "generate": 3}]


def judge(case, a, root):
    """One case: the recording, its verdict, and what that is worth."""
    model, folder = model_of(case, a, root), pathlib.Path(tempfile.mkdtemp(dir=root, prefix="case_"))
    fault = None if case.fault == SOUND else case.fault
    site = numpy_engine.run(model, requests_of(case), case.numerics, case.recorded, fault, case.layer, folder / "dump", plain=a.plain)
    (folder / "site.json").write_text(json.dumps({**dataclasses.asdict(case), **site}, indent=2) + "\n")
    begin = time.monotonic()
    code, output = run([a.exe, "judge", model, folder / "dump", "--out", folder / "out", "--json", folder / "verdict.json", *a.more],
                       any_code=True)  # fmt: skip
    seconds = time.monotonic() - begin
    (folder / "output.txt").write_text(output)
    try:
        verdict = json.loads((folder / "verdict.json").read_text())
    except (OSError, ValueError):
        verdict = {}
    result = judged(site, case.recorded, code, verdict, output)
    share = nearest_bound(verdict)
    if share and case.fault == SOUND:
        result.words += f"; {share[0]:.2g} of the bound at layer {share[1]} {share[2]}"
    keep_or_remove(folder, case, result, a)
    return result, seconds


def keep_or_remove(folder, case, result, a):
    if a.keep and (a.keep_all or not result.right):
        name = "_".join(str(part) for part in dataclasses.astuple(case))
        shutil.rmtree(a.keep / name, ignore_errors=True)
        shutil.move(folder, a.keep / name)
    else:
        shutil.rmtree(folder)


def run(command, any_code=False):
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode and not any_code:
        raise SystemExit(f"sweep: exit {done.returncode} of {' '.join(map(str, command))}: {done.stdout}")
    return done.returncode, done.stdout


def numbers(text):
    first, dots, end = text.partition("..")
    return list(range(int(first), int(end))) if dots else [int(first)]


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exe", required=True, help="moe-diag")
    parser.add_argument("--full", action="store_true", help="all cases of 20 seeds, instead of the sample")
    parser.add_argument("--sample", type=int, help="so many of the cases [26 without --full and other choices]")
    parser.add_argument("--models", nargs="+", choices=SYNTH, default=["tiny", "massive"], help="wide: 4 layers of full width, 2 GB")
    parser.add_argument("--seeds", type=numbers, help="of models and tokens: 3, or 0..20, the end excluded")
    parser.add_argument("--fault-seeds", type=int, default=2, help="of how many of the seeds the faulty ones are tried")
    parser.add_argument("--tokens", type=int, nargs="+", default=[64])
    parser.add_argument("--numerics", nargs="+", choices=numpy_engine.NUMERICS, default=list(numpy_engine.NUMERICS))
    parser.add_argument("--recorded", nargs="+", choices=numpy_engine.RECORDED, default=["all", "moe", "layers"])
    parser.add_argument("--faults", nargs="+", choices=[SOUND, *faults.FAULTS], default=[SOUND, *faults.FAULTS])
    parser.add_argument("--plain", action="store_true", help="engines without roundings within a stage")
    parser.add_argument("--keep", type=pathlib.Path, metavar="DIR", help="keep the dumps and verdicts of cases that went wrong")
    parser.add_argument("--keep-all", action="store_true", help="and of the others")
    parser.add_argument("--more", nargs=argparse.REMAINDER, default=[], help="options for `moe-diag judge`; comes last")
    a = parser.parse_args()
    chosen = any(getattr(a, name) != parser.get_default(name) for name in ("models", "seeds", "tokens", "numerics", "recorded", "faults"))
    if not a.full and not chosen and not a.sample:
        a.sample = 26
    a.seeds = a.seeds or list(range(20 if a.full else 1 if a.sample else 2))
    if a.keep:
        a.keep.mkdir(parents=True, exist_ok=True)
        a.keep = a.keep.resolve()
    return a


def print_totals(a, results):
    """How many cases of each fault are right, by recording and numerics; then sound and faulty ones in all."""
    columns = [(recorded, numerics) for recorded in a.recorded for numerics in a.numerics]
    print("\n" + " " * 12 + "".join(f"{f'{recorded} {numerics}':>17}" for recorded, numerics in columns))
    for fault in a.faults:
        cells = []
        for column in columns:
            found = [result.right for case, result in results if (case.fault, (case.recorded, case.numerics)) == (fault, column)]
            cells.append(f"{sum(found)}/{len(found)}" if found else "-")
        print(f"{fault:12}" + "".join(f"{cell:>17}" for cell in cells))
    for group in ("sound", "faulty"):
        found = [result.right for case, result in results if (case.fault == SOUND) == (group == "sound")]
        print(f"{group}: {sum(found)} of {len(found)} as they should be")


def main():
    a = options()
    results, total = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        for case in make_cases(a):
            result, seconds = judge(case, a, pathlib.Path(folder))
            total += seconds
            results.append((case, result))
            print(f"{'ok  ' if result.right else 'FAIL'} {case}: {result.words} [{seconds:.1f} s]", flush=True)
    print_totals(a, results)
    print(f"judging took {total:.1f} s")
    return 0 if results and all(result.right for _, result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
