# SPDX-License-Identifier: MIT
"""The engine that the tests record is one of Qwen3-MoE: it agrees with moe-diag, and its faults are where it says."""

import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/recordings"))
import numpy_engine  # noqa: E402
import numpy  # noqa: E402
from moe_diag import from_bits, open_capture, open_dump, to_bits  # noqa: E402

EXE = os.environ["MOE_DIAG_EXE"]
REQUESTS = [
    {"request": "short", "tokens": [3, 141, 59], "generate": 3},
    {"request": "longer", "tokens": [26, 53, 58, 97, 93, 238, 462, 64, 5, 77, 301, 12, 9, 88, 411, 17, 200, 33, 4, 5, 6], "chunk": 18, "generate": 2},
]  # fmt: skip
# Lanes that do what the engine does, without the roundings within a stage. The last is free of any.
LANES = {
    "f32": "{backend: cpu, numerics: f64}",
    "bf16": "{backend: cpu, numerics: f32, reads: bf16, weights: bf16, stored: hf, kv_cache: bf16}",
    "fp8": "{backend: cpu, numerics: f32, reads: fp8_128, weights: fp8_block, stored: vllm, kv_cache: bf16}",
}
CONTRACT = """
metadata: {{id: engine, version: 1.0.0, description: what the engine should give}}
model: {{gguf: {model}}}
prompts:
{prompts}
oracle: f32
lanes:
{lanes}
capture:
  - {{stages: all, to: [folder]}}
sinks:
  folder: {{sink: npy, dir: dump}}
falsifiers:
  - {{id: NONE, claim: c, lane: bf16, stage: lm_head, metric: nonfinite, equals: 0}}
"""


class Engine(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory()
        cls.root = pathlib.Path(cls.temporary.name)
        cls.model = cls.root / "tiny.gguf"
        moe_diag("synth", cls.model, "--seed", 7)
        cls.number = 0

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    def recording(self, numerics, requests=REQUESTS, **options):
        """A dump, and where its fault is."""
        Engine.number += 1
        path = self.root / f"dump{self.number}"
        site = numpy_engine.run(self.model, requests, numerics, out=path, **{"scores": True, **options})
        return open_dump(path), site

    @classmethod
    @functools.lru_cache(maxsize=1)  # one run for all tests
    def capture(cls):
        prompts = "".join(f"  - {{id: {r['request']}, tokens: {r['tokens']}, generate: {r['generate']}}}\n" for r in REQUESTS)
        lanes = "".join(f"  {name}: {lane}\n" for name, lane in LANES.items())
        (cls.root / "c.yaml").write_text(CONTRACT.format(model=cls.model, prompts=prompts, lanes=lanes))
        moe_diag("capture", cls.root / "c.yaml", "--out", cls.root / "out")
        return open_capture(cls.root / "out/dump")

    def compared(self, dump, lane, generated):
        """Each array of a dump with what a lane gave, row for row in the order of requests and positions. Tokens are `generated`
        from the oracle's logits, so those of an engine that rounds may be others."""
        places = [(request, at) for call in dump.calls for request, at in zip(call.requests, call.positions)]
        for request in REQUESTS:
            name, count = request["request"], len(request["tokens"]) + generated * request["generate"]
            rows = [places.index((name, at)) for at in range(count)]
            for stage, layer in dump:
                own, given = dump[stage, layer][rows], self.capture()[name, lane, layer, stage][:count]
                if stage in numpy_engine.SCORES:
                    own = own[..., : given.shape[-1]]
                yield stage, layer, name, own.reshape(given.shape), given

    def test_f32_is_the_oracle_to_rounding(self):
        dump, _ = self.recording("f32")
        self.assertEqual(len(dump), 23 * 4 + 3)
        self.assertEqual([len(call.positions) for call in dump.calls], [3, 18, 3, 2, 2, 1])
        for stage, layer, name, own, given in self.compared(dump, "f32", generated=True):
            if stage == "moe_router_indices":
                self.assertTrue((own == given).all(), (stage, layer, name))
            else:
                error = numpy.linalg.norm(own - given) / numpy.linalg.norm(given)
                self.assertLess(error, 1e-5, (stage, layer, name))

    def test_roundings_are_those_of_a_lane(self):
        """Other sums round a value to its neighbour now and then: most values of layer 0 have the lane's very bits."""
        for numerics in ("bf16", "fp8"):
            dump, _ = self.recording(numerics, plain=True)
            kind = numpy_engine.NUMERICS[numerics]
            for stage, layer, name, own, given in self.compared(dump, numerics, generated=False):
                if layer == 0 and stage not in kind.wide:
                    self.assertGreater((own == given).mean(), 0.98, (numerics, stage, name))
                elif layer == 0:
                    self.assertLess(numpy.linalg.norm(own - given) / numpy.linalg.norm(given), 1e-3, (numerics, stage, name))

    def test_roundings(self):
        random = numpy.random.default_rng(3)
        x = (random.standard_normal(4000) * 2.0 ** random.integers(-14, 9, 4000)).astype(numpy.float32)
        ties = (numpy.arange(-40, 40)[:, None] / 2 * 2.0 ** numpy.arange(-10, 5)).ravel().astype(numpy.float32)
        x = numpy.clip(numpy.concatenate([x, ties, [448, -448, 2**-6, 2**-9, 2**-10, 0]]), -448, 448).astype(numpy.float32)
        for rounding, name in ((numpy_engine.e4m3, "F8_E4M3"), (numpy_engine.bf16, "BF16")):
            self.assertEqual(rounding(x).tolist(), from_bits(to_bits(x, name), name).tolist())
        self.assertEqual(numpy_engine.e4m3(numpy.float32([500, -1e9])).tolist(), [448, -448])
        self.assertTrue(numpy.isnan(numpy_engine.e4m3(numpy.float32([numpy.nan]))).all())
        self.assertEqual(numpy_engine.fp8_weights(numpy.ones((130, 257), numpy.float32)).tolist(), numpy.ones((130, 257)).tolist())

    def test_faults_are_where_they_are_said_to_be(self):
        sound, site = self.recording("f32")
        self.assertIsNone(site["shows"])
        for fault in numpy_engine.faults.FAULTS:
            with self.subTest(fault):
                self.check_fault(fault, sound)

    def check_fault(self, fault, sound):
        dump, site = self.recording("f32", fault=fault, layer=2)
        order = numpy_engine.LAYER_STAGES
        prompts = sum(len(request["tokens"]) for request in REQUESTS)  # what follows them is another token after a fault
        wrong = [(layer, stage) for layer in range(4) for stage in order
                 if not numpy.array_equal(dump[stage, layer][:prompts], sound[stage, layer][:prompts])]  # fmt: skip
        self.assertEqual(wrong[0], (2, site["shows"]))
        if site["where"] == "recording":
            self.assertEqual(sorted(wrong), sorted((2, stage) for stage in site["stages"]))
        elif fault != "rope_offset":
            self.assertIn((2, "post_ffn_residual"), wrong)

    def test_is_judged_wherever_it_lies(self):
        """The contract that `judge` writes names model and dump by paths that YAML would read otherwise as they are."""
        folder = self.root / 'a "b" \\ ü\n#\t'
        folder.mkdir()
        numpy_engine.run(self.model, REQUESTS[:1], "f32", out=folder / "dump", scores=True)
        (folder / "m.gguf").symlink_to(self.model)
        moe_diag("judge", folder / "m.gguf", folder / "dump", "--contract", self.root / "judge.yaml", "--out", self.root / "judged")

    def test_a_recording_that_begins_late_may_have_what_the_cache_had(self):
        before = 18  # positions: the first call
        self.recording("f32", requests=REQUESTS[1:], scores=False)
        dump = self.root / f"dump{self.number}"
        cached = {}
        for path in sorted(dump.rglob("*.npy")):
            array = numpy.load(path)
            if path.stem == "k_post_rope":
                cached[path.parent.name, "keys"] = array[:before].reshape(before, -1)
            if path.stem == "qkv_matmul":
                cached[path.parent.name, "values"] = array[:before, -cached_width(self.model) :]
            numpy.save(path, array[before:])
        lines = (dump / "calls.jsonl").read_text().splitlines()[1:]
        (dump / "calls.jsonl").write_text("".join(line + "\n" for line in lines))
        info = json.loads((dump / "dump.json").read_text())
        (dump / "dump.json").write_text(json.dumps({**info, "calls": len(lines)}))

        def outcome():
            return judge(self.model, dump, self.root / "late")

        outcomes, samples, text = outcome()
        self.assertEqual(outcomes, {"FINITE": "held", "STEPS": "held", "SPANS": "untested", "ROUTING": "held"}, text)
        self.assertIn("12 recorded arrays of calls were not judged, the first layer 0, attention", text)
        self.assertEqual(samples["SPANS"], 0)
        for (layer, name), rows in cached.items():
            path = dump / "cached/longer" / layer / f"{name}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            numpy.save(path, rows)
        outcomes, samples, text = outcome()
        self.assertEqual(set(outcomes.values()), {"held"}, text)
        self.assertEqual(samples["SPANS"], 4 * 5)  # layers, positions
        numpy.save(dump / "cached/longer/layer_02/keys.npy", numpy.roll(cached["layer_02", "keys"], 1, axis=0))
        outcomes, _, text = outcome()
        self.assertIn("falsified", outcomes.values())
        self.assertRegex(text, "where      prompt longer, position 18, layer 2, attention")
        for change, message in (
            (lambda rows: rows[1:], "expected \\[18, 128\\]"),
            (lambda rows: rows[:, 1:], "expected \\[18, 128\\]"),
            (lambda rows: rows.astype(numpy.int32), "found shape \\[18, 128\\] of i32"),
        ):
            numpy.save(dump / "cached/longer/layer_02/keys.npy", change(cached["layer_02", "keys"]))
            self.assertRegex(outcome()[2], message)
        (dump / "cached/longer/layer_02/keys.npy").rename(dump / "cached/longer/layer_02/key.npy")
        self.assertIn("did you mean 'keys.npy'?", outcome()[2])

    def test_records_what_is_asked_for(self):
        for recorded, count in (("all", 21 * 4 + 3), ("moe", 12 * 4), ("layers", 8), ("layers_only", 4)):
            dump, site = self.recording("bf16", recorded=recorded, scores=False, fault="missing_rank", layer=1, head="last")
            self.assertEqual(len(dump), count)
            self.assertEqual(site["shows"], "moe_ffn_out" if count > 8 else "post_ffn_residual")
        with self.assertRaisesRegex(ValueError, "map_swap: two stages of the recording wanted, found none"):
            self.recording("f32", recorded="layers", fault="map_swap", scores=False)
        with self.assertRaisesRegex(ValueError, "swap: expected a layer"):
            self.recording("f32", fault="swap")


def cached_width(model):
    """Of the values of a position: all heads."""
    engine = numpy_engine.Engine(model, numpy_engine.NUMERICS["f32"], None)
    return engine.kv_heads * engine.head_dim


def judge(model, dump, out):
    """Outcome by claim, number of samples by claim, and the report."""
    run = subprocess.run([EXE, "judge", model, dump, "--out", out, "--overwrite"], capture_output=True, text=True)
    rows = [line.split() for line in run.stdout.splitlines() if line.startswith(("held", "falsified", "untested"))]
    return {row[1]: row[0] for row in rows}, {row[1]: int(row[2]) for row in rows}, run.stdout + run.stderr


def moe_diag(*arguments):
    run = subprocess.run([EXE, *map(str, arguments)], capture_output=True, text=True)
    assert run.returncode == 0, (run.returncode, run.stdout, run.stderr)


if __name__ == "__main__":
    unittest.main()
