# SPDX-License-Identifier: MIT
"""The sweep over recorded engines tells a right verdict from a wrong one: it is tried on verdicts that are made up."""

import json
import pathlib
import stat
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/recordings"))
import numpy_engine  # noqa: E402
import sweep  # noqa: E402


def site(fault, layer, recorded):
    kept = numpy_engine.RECORDED[recorded]
    return sweep.faults.site(sweep.faults.make(fault, layer, kept), kept, numpy_engine.LAYER_STAGES)


def verdict(*divergences):
    """A verdict whose first divergence is the first of (layer, stage, cause)."""
    found = [{"layer": layer, "stage": stage, "cause": cause} for layer, stage, cause in divergences]
    return {"first_divergence": {**found[0], "falsifier": "STEPS"}, "divergences": found}


class Judged(unittest.TestCase):
    def check(self, words, right, planted, recorded, code, given=None, output=""):
        result = sweep.judged(site(*planted, recorded), recorded, code, given or {}, output)
        self.assertEqual((result.right, words in result.words), (right, True), result.words)

    def test_sound(self):
        sound = (None, None)
        self.check("held", True, sound, "moe", 0)
        self.check("SOUND, but untested", False, sound, "moe", 3)
        self.check("held", True, sound, "layers_only", 0)
        self.check("SOUND, but layer 1 ffn_norm, operator", False, sound, "moe", 1, verdict((1, "ffn_norm", "operator")))
        self.check("SOUND, but exit 2: no such option", False, sound, "moe", 2, None, "\nno such option\n")
        self.check("held", True, ("rope_offset", 2), "moe", 0)

    def test_fault(self):
        swap = ("swap", 2)
        right = verdict((2, "moe_expert_gate", "wrong_tensor"), (2, "moe_expert_up", "wrong_tensor"), (3, "moe_router_indices", "routing_tie"))
        self.check("layer 2 moe_expert_gate, wrong_tensor", True, swap, "moe", 1, right)
        self.check("layer 2 post_ffn_residual, no cause", True, swap, "layers", 1, verdict((2, "post_ffn_residual", None)))
        self.check("MISSED: held; expected layer 2 moe_expert_gate", False, swap, "moe", 0)
        self.check("MISSED: untested", False, swap, "layers", 3)
        self.check("not to be seen", True, swap, "layers_only", 3)
        self.check("MISSED: exit 4: disk", False, swap, "moe", 4, None, "disk")
        self.check("NAMED ELSEWHERE", False, swap, "moe", 1, verdict((1, "moe_expert_gate", "wrong_tensor")))
        self.check("NAMED ELSEWHERE", False, swap, "moe", 1, verdict((2, "moe_expert_swiglu", "operator")))
        self.check("ELSEWHERE: layer 3 ffn_norm (operator)", False, swap, "moe", 1,
                   verdict((2, "moe_expert_gate", "wrong_tensor"), (3, "ffn_norm", "operator")))  # fmt: skip
        self.check("CAUSE is scale: expected wrong_tensor", False, swap, "moe", 1, verdict((2, "moe_expert_gate", "scale")))
        self.check("MISSED", False, ("nan", 1), "layers_only", 0)
        self.check("nonfinite_origin", True, ("nan", 1), "moe", 1, verdict((1, "moe_expert_out", "nonfinite_origin"), (2, "q_norm", "zero")))

    def test_recording(self):
        swapped = ("map_swap", None)
        self.check("refused", True, swapped, "moe", 2, None, "moe_expert_gate and moe_expert_up: the recording is wrong")
        self.check("WITHOUT moe_expert_gate", False, swapped, "moe", 2, None, "unknown option")
        self.check("RECORDING is wrong at moe_expert_gate and moe_expert_up, but exit 1", False, swapped, "moe", 1)

    def test_room(self):
        bound = {"kind": "at_most", "value": 10}
        worst = [{"worst": {"value": v, "bound": bound, "layer": n, "stage": "moe_ffn_out"}} for n, v in enumerate((3, "inf", 4))]
        self.assertEqual(sweep.nearest_bound({"falsifiers": worst[::2]}), (0.4, 2, "moe_ffn_out"))
        self.assertEqual(sweep.nearest_bound({"falsifiers": worst})[1], 1)
        self.assertIsNone(sweep.nearest_bound({}))


FAKE = """#!{python}
import json, os, pathlib, sys
words = sys.argv[1:]
if words[0] == "synth":
    os.execv({exe!r}, ["moe-diag", *words])
site = json.loads(pathlib.Path(words[2], "../site.json").read_text())
if site["where"] == "recording":
    sys.exit(print("the recording is wrong:", *site["stages"]) or 2)
if site["shows"] is None or site["fault"] == {blind!r}:
    sys.exit(0)
found = {{"layer": site["layer"], "stage": site["shows"], "cause": site["causes"][0], "falsifier": "STEPS"}}
pathlib.Path(words[words.index("--json") + 1]).write_text(json.dumps({{"first_divergence": found, "divergences": [found]}}))
sys.exit(1)
"""


class Swept(unittest.TestCase):
    def test_totals_and_exit_code(self):
        """A judge that knows the truth, then one that is blind to a fault."""
        for blind, code, words in ((None, 0, "faulty: 5 of 5"), ("swap", 1, "faulty: 4 of 5")):
            with tempfile.TemporaryDirectory() as folder:
                exe = pathlib.Path(folder, "moe-diag")
                exe.write_text(FAKE.format(python=sys.executable, exe=numpy_engine.os.environ["MOE_DIAG_EXE"], blind=blind))
                exe.chmod(exe.stat().st_mode | stat.S_IXUSR)
                done = subprocess.run(
                    [sys.executable, sweep.__file__, "--exe", exe, "--models", "tiny", "--seeds", "3", "--tokens", "20", "--keep", folder + "/kept",
                     "--numerics", "f32", "--recorded", "layers", "--faults", "none", "swap", "nan", "row_shift", "expert5", "norenorm"],
                    capture_output=True, text=True)  # fmt: skip
                self.assertEqual(done.returncode, code, done.stdout + done.stderr)
                self.assertIn("sound: 1 of 1", done.stdout)
                self.assertIn(words, done.stdout)
                kept = [json.loads(path.read_text())["fault"] for path in pathlib.Path(folder, "kept").glob("*/site.json")]
                self.assertEqual(kept, [blind] if blind else [])


if __name__ == "__main__":
    unittest.main()
