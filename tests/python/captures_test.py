# SPDX-License-Identifier: MIT
"""moe_diag.captures reads what both sinks write, and refuses what is not whole."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

import h5py
import moe_diag
import numpy
from moe_diag import CaptureError, open_capture

EXE = os.environ["MOE_DIAG_EXE"]
CONTRACT = """
metadata: {id: python, version: 1.0.0, description: both sinks and a claim that fails}
model: {synthetic: tiny, seed: 7}
prompts:
  - {id: short, tokens: [3, 141, 59], generate: 3}
  - {id: longer, tokens: [3, 141, 59, 26, 53, 58, 97], chunk: 2}
oracle: truth
lanes:
  truth: {backend: cpu, numerics: f64}
  step: {backend: cpu, numerics: f32, inputs: truth}
capture:
  - {stages: all, positions: [0, 2, -1], to: [folder, file, chunks]}
sinks:
  folder: {sink: npy, dir: dump}
  file: {sink: hdf5, file: capture.h5}
  chunks: {sink: hdf5, file: chunks.h5, chunk: 2, compress: 1}
planted:
  - {inject: scale, stage: moe_expert_out, layer: 2, lane: step}
falsifiers:
  - {id: STEPS, claim: c, lane: step, stage: ["moe_ffn_out", "moe_expert_out", lm_head], metric: rel_l2, at_most: 1e-5}
  - {id: FINITE, claim: c, lane: step, stage: all, metric: nonfinite, equals: 0}
"""
FORMS = ["dump", "capture.h5", "chunks.h5"]


class Captures(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory()
        cls.root = pathlib.Path(cls.temporary.name)
        (cls.root / "c.yaml").write_text(CONTRACT)
        run = subprocess.run([EXE, "run", cls.root / "c.yaml", "--out", cls.root / "out"], capture_output=True, text=True)
        assert run.returncode == 1, (run.returncode, run.stdout, run.stderr)
        cls.out = cls.root / "out"

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def copy(self, form):
        """A capture that may be damaged."""
        folder = pathlib.Path(tempfile.mkdtemp(dir=self.root))
        path = folder / form
        (shutil.copytree if (self.out / form).is_dir() else shutil.copy)(self.out / form, path)
        return path

    def test_all_sinks_hold_the_same(self):
        captures = [open_capture(self.out / form) for form in FORMS]
        first = captures[0]
        self.assertEqual(len(first), 2 * 2 * (23 * 4 + 3))
        for other in captures[1:]:
            self.assertEqual(list(first), list(other))
            self.assertEqual((first.prompts, first.lanes, first.layers, first.stages),
                             (other.prompts, other.lanes, other.layers, other.stages))  # fmt: skip
            for key in ("contract", "model", "prompts", "lanes", "planted", "format_version"):
                self.assertEqual(first.manifest[key], other.manifest[key], key)
            for key in first:
                a, b = first[key], other[key]
                self.assertEqual((a.dtype, a.shape, a.tobytes()), (b.dtype, b.shape, b.tobytes()), key)
                self.assertEqual(first.tensor(*key).positions, other.tensor(*key).positions, key)
        for capture in captures:
            self.assertTrue(capture.check())

    def test_keys(self):
        for form in FORMS:
            capture = open_capture(self.out / form)
            ffn = capture["short", "truth", 2, "moe_ffn_out"]
            self.assertEqual((ffn.dtype, ffn.shape), (numpy.float64, (3, 256)))
            self.assertEqual(capture.tensor("short", "truth", 2, "moe_ffn_out").positions, (0, 2, 5))
            self.assertEqual(capture.tensor("longer", "truth", 0, "moe_ffn_out").positions, (0, 2, 6))
            self.assertTrue((capture["short", "truth", -2, "moe_ffn_out"] == ffn).all())
            self.assertEqual(capture["short", "step", None, "lm_head"].shape, (3, 512))
            self.assertEqual(capture["short", "step", 0, "moe_router_indices"].dtype, numpy.int32)
            self.assertIn(("short", "step", 0, "layer_output"), capture)
            self.assertNotIn(("short", "step", None, "moe_ffn_out"), capture)
            self.assertEqual([t.layer for t in capture.select("short", "step", stage="moe_router")], [0, 1, 2, 3])
            self.assertEqual(len(capture.select(lane="truth")), len(capture) // 2)
            self.assertEqual(len(capture.manifest["prompts"][0]["tokens"]), 6)
            for key, words in (
                (("shrt", "step", 0, "moe_ffn_out"), "did you mean 'short'?"),
                (("short", "stp", 0, "moe_ffn_out"), "did you mean 'step'?"),
                (("short", "step", 0, "moe_ffn_ou"), "did you mean 'moe_ffn_out'?"),
                (("short", "step", 9, "moe_ffn_out"), "its layers here are 0, 1, 2, 3"),
                (("short", "step", None, "moe_ffn_out"), "its layers here are 0, 1, 2, 3"),
                (("short", "step", 0, "lm_head"), "its layer is None"),
            ):
                with self.assertRaisesRegex(KeyError, words.replace("?", r"\?")):
                    capture[key]

    def test_select(self):
        for form in FORMS:
            capture = open_capture(self.out / form)
            routing = capture.select("short", "step", 1, "moe_router_*")
            self.assertEqual([t.stage for t in routing], [s for s in capture.stages if s.startswith("moe_router_")])
            self.assertEqual(capture.select(layer=-1), capture.select(layer=3))
            self.assertEqual(capture.select(layer=0, stage="lm_head"), [])  # both are there, no tensor has both
            for wanted, words in (
                ({"stage": "moe_ffn"}, "no stage 'moe_ffn' in the capture, did you mean 'moe_ffn_out'? There is: embedding, "),
                ({"stage": "attn_[0-9]"}, "no stage 'attn_[0-9]' in the capture"),
                ({"prompt": "shrt"}, "did you mean 'short'?"),
                ({"lane": "free"}, "There is: truth, step"),
                ({"layer": 9}, "no layer '9' in the capture. There is: 0, 1, 2, 3"),
            ):
                with self.assertRaisesRegex(KeyError, re.escape(words)):
                    capture.select(**wanted)

    def test_text(self):
        capture = open_capture(self.out / "dump")
        self.assertEqual(repr(capture), f"<Capture {self.out / 'dump'}: 2 prompts, 2 lanes, 4 layers, 26 stages, 380 tensors>")
        self.assertIn("capture.h5: 2 prompts", repr(open_capture(self.out / "capture.h5")))
        version = subprocess.run([EXE, "--version"], capture_output=True, check=True, text=True).stdout.split()[1]
        self.assertEqual(moe_diag.__version__, version)

    def test_folder_of_a_run(self):
        with self.assertRaisesRegex(CaptureError, "has several captures, name one: .*capture.h5, .*chunks.h5, .*dump"):
            open_capture(self.out)
        path = self.copy("dump")
        (path.parent / "stats.json").write_text("{}")
        self.assertEqual(open_capture(path.parent).path, path)
        both = pathlib.Path(tempfile.mkdtemp(dir=self.root))
        path.parent.rename(both / "contract-id")  # of several contracts, each has a folder
        self.assertEqual(open_capture(both).path, both / "contract-id/dump")
        (both / "contract-id/dump/manifest.json").rename(both / "contract-id/dump/incomplete")
        with self.assertRaisesRegex(CaptureError, "dump: not complete"):
            open_capture(both)
        file = self.copy("capture.h5")
        self.assertEqual(open_capture(file.parent).path, file)
        file.rename(file.with_name("capture.h5.partial"))
        with self.assertRaisesRegex(CaptureError, "capture.h5.partial: not complete"):
            open_capture(file.parent)
        file.with_name("capture.h5.partial").unlink()
        with self.assertRaisesRegex(CaptureError, "no manifest.json, and no capture is in it"):
            open_capture(file.parent)

    def test_names_are_those_of_the_tool(self):
        stages = json.loads(subprocess.run([EXE, "stages", "--json"], capture_output=True, check=True).stdout)["stages"]
        self.assertEqual(moe_diag.captures.STAGES, [s["name"] for s in stages])
        self.assertEqual(moe_diag.captures.ALIASES, {s["alias"]: s["name"] for s in stages if s.get("alias")})
        capture = open_capture(self.out / "dump")
        self.assertEqual(capture.stages, moe_diag.captures.STAGES)

    def test_join(self):
        verdict = json.loads((self.out / "verdict.json").read_text())
        for form in FORMS:
            capture = open_capture(self.out / form)
            self.assertEqual(len(capture.join(self.out / "verdict.json")), 2)
            for site in verdict["falsifiers"][0]["sites"]:
                site["position"] = 2  # one that was captured
            failures = capture.join(verdict)
            sites = {(f.falsifier, *f.tensor.key) for f in failures}
            self.assertEqual(sites, {("STEPS", p, "step", 2, s) for p in capture.prompts
                                     for s in ("moe_expert_out",)})  # fmt: skip
            for failure in failures:
                self.assertTrue(numpy.allclose(failure.values, 2 * failure.reference, rtol=1e-4, atol=1e-4))
                self.assertEqual((failure.missing, failure.site["position"]), ("", failure.position))
                at = failure.tensor.positions.index(failure.position)
                self.assertTrue((failure.row == failure.values[at]).all())
                self.assertTrue((failure.reference_row == failure.reference[at]).all())
                self.assertGreater(failure.site["failing"], 0)
            other = json.loads(json.dumps(verdict))
            other["contract"]["id"] = "other"
            with self.assertRaisesRegex(CaptureError, "not of the contract python 1.0.0"):
                capture.join(other)
            self.assertEqual(len(capture.join({"verdicts": [other, verdict]})), len(failures))
            other = json.loads(json.dumps(verdict))
            other["model"]["digest"] = "0" * 16
            with self.assertRaisesRegex(CaptureError, "of the model 0000"):
                capture.join(other)

    def test_join_with_what_was_not_captured(self):
        path = self.copy("dump")
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["tensors"] = [t for t in manifest["tensors"] if t["lane"] == "truth"]
        (path / "manifest.json").write_text(json.dumps(manifest))
        verdict = json.loads((self.out / "verdict.json").read_text())
        for site in verdict["falsifiers"][0]["sites"]:
            site["position"] = 2  # one that was captured
        for failure in open_capture(path).join(verdict):
            self.assertIsNone(failure.tensor)
            self.assertIsNone(failure.values)
            self.assertIsNone(failure.row)
            self.assertIsNotNone(failure.reference)
            self.assertIsNotNone(failure.reference_row)
            self.assertEqual(
                failure.missing,
                f"layer 2, moe_expert_out of lane 'step' was not captured for prompt '{failure.prompt}'",
            )

    def test_join_with_another_position(self):
        verdict = json.loads((self.out / "verdict.json").read_text())
        finite = next(f for f in verdict["falsifiers"] if f["id"] == "FINITE")
        finite["against"] = None
        for falsifier in verdict["falsifiers"]:
            for site in falsifier["sites"]:
                site["position"] = 1
                site["failing"] = 1
        for form in FORMS:
            failures = open_capture(self.out / form).join(verdict)
            for failure in failures:
                self.assertIsNotNone(failure.values)
                self.assertIsNone(failure.row)
                self.assertIsNone(failure.reference_row)
                have = "0, 2, 5" if failure.prompt == "short" else "0, 2, 6"
                self.assertIn(f"{failure.stage} of lane 'step' was captured at {have}, not at position 1", failure.missing)
                alone = failure.falsifier == "FINITE"
                self.assertEqual("compares with no other lane" in failure.missing, alone)
                self.assertEqual("of lane 'truth' was captured at" in failure.missing, not alone)
            self.assertEqual({f.falsifier for f in failures}, {"STEPS", "FINITE"})

    def test_incomplete(self):
        path = self.copy("dump")
        (path / "manifest.json").unlink()
        with self.assertRaisesRegex(CaptureError, "not a capture: it has no manifest"):
            open_capture(path)
        (path / "incomplete").write_text("")
        with self.assertRaisesRegex(CaptureError, "not complete"):
            open_capture(path)
        path = self.copy("capture.h5")
        partial = path.with_name("capture.h5.partial")
        path.rename(partial)
        for name in (path, partial):
            with self.assertRaisesRegex(CaptureError, "not complete"):
                open_capture(name)
        path = self.copy("capture.h5")
        with h5py.File(path, "a") as file:
            del file.attrs["complete"]
        with self.assertRaisesRegex(CaptureError, "not complete"):
            open_capture(path)

    def test_not_a_capture(self):
        with self.assertRaisesRegex(CaptureError, "no such folder or file"):
            open_capture(self.root / "nowhere")
        with self.assertRaisesRegex(CaptureError, "cannot be read as HDF5"):
            open_capture(self.root / "c.yaml")
        with h5py.File(self.root / "theirs.h5", "w") as file:
            file["a"] = 1
        with self.assertRaisesRegex(CaptureError, "not a capture of moe-diag"):
            open_capture(self.root / "theirs.h5")
        for text, words in (("{", "cannot be read"), ("[]", "not a capture"), ('{"format": "x"}', "not a capture")):
            path = self.copy("dump")
            (path / "manifest.json").write_text(text)
            with self.assertRaisesRegex(CaptureError, words):
                open_capture(path)
        path = self.copy("dump")
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["format_version"] = 99
        (path / "manifest.json").write_text(json.dumps(manifest))
        with self.assertRaisesRegex(CaptureError, "format version 99"):
            open_capture(path)

    def test_damage(self):
        file = "short/truth/layer_02/moe_ffn_out"
        path = self.copy("dump")
        data = bytearray((path / (file + ".npy")).read_bytes())
        data[-1] ^= 1
        (path / (file + ".npy")).write_bytes(data)
        with self.assertRaisesRegex(CaptureError, file + ".npy: its digest is"):
            open_capture(path).check()
        with mock.patch.dict(sys.modules, {"xxhash": None}):
            self.assertFalse(open_capture(path).check())  # sizes and shapes are right
            (path / (file + ".npy")).write_bytes(data + b"1234")
            with self.assertRaisesRegex(CaptureError, "expected 6144"):
                open_capture(path).check()
            (path / (file + ".npy")).write_bytes(data[:-9])
            with self.assertRaisesRegex(CaptureError, file):
                open_capture(path).check()
            numpy.save(path / (file + ".npy"), numpy.zeros((3, 8)))
            with self.assertRaisesRegex(CaptureError, "is float64"):
                open_capture(path).check()
            (path / (file + ".npy")).unlink()
            with self.assertRaisesRegex(CaptureError, "cannot be read"):
                open_capture(path).check()
        path = self.copy("capture.h5")
        with h5py.File(path, "a") as damaged:
            damaged[file][0, 0] += 1
        with self.assertRaisesRegex(CaptureError, file + ": its digest is"):
            open_capture(path).check()


if __name__ == "__main__":
    unittest.main()
