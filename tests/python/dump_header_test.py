# SPDX-License-Identifier: MIT
"""moe_diag_dump.h in C99 and C++17, and the Rust of the same page, write what moe_diag.open_dump reads."""

import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

import numpy
from moe_diag import DumpError, open_dump

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs/examples/record"
STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I", str(ROOT / "apps/c")]
LANGUAGES = {"C99": [os.environ.get("CC", "cc"), "-std=c99"], "C++17": [os.environ.get("CXX", "c++"), "-std=c++17", "-x", "c++"]}

# Each argument is a step; it prints the error of the first one that fails. The values of stage, layer and row are told apart.
STEPS = r"""
#include <stdlib.h>
#include "moe_diag_dump.h"
int main(int argc, char** argv) {
  static moe_diag_dump d;
  static float x[4096];
  static const int32_t tokens[] = {40, 41, 42, 43, 44, 45};
  int bad = moe_diag_dump_open(&d, argv[1], "test 1");
  if (getenv("STAGES")) d.stages = getenv("STAGES");
  if (getenv("LAYERS")) d.first_layer = atoi(getenv("LAYERS")), d.end_layer = d.first_layer + 1;
  if (getenv("CALLS")) d.first_call = atoi(getenv("CALLS")), d.end_call = d.first_call + 1;
  if (getenv("LAST")) d.last = atoi(getenv("LAST"));
  for (int i = 2; i < argc && !bad; ++i) {
    char name[64] = "";
    int layer, rows, width, height, type, first;
    if (sscanf(argv[i], "begin %d %d", &first, &rows) == 2) bad = moe_diag_dump_begin(&d, "0", first, rows, tokens, NULL);
    if (sscanf(argv[i], "%63s %d %d %d %d %d", name, &layer, &type, &rows, &width, &height) == 6) {
      for (int j = 0; j < 4096; ++j) x[j] = (float)(1000 * layer + j);
      bad = moe_diag_dump_rows(&d, name, layer, type, x, rows, width, height);
    }
    if (!strcmp(argv[i], "end")) bad = moe_diag_dump_end(&d);
    if (!strcmp(argv[i], "close")) bad = moe_diag_dump_close(&d);
  }
  printf("%s", d.error);
  return bad;
}
"""
CALL = ["begin 0 3", "embedding -1 0 3 8 0", "q_norm 0 0 3 4 2", "q_norm 1 0 3 4 2", "end"]
NEXT = [step.replace(" 0 3 ", " 0 1 ").replace("begin 0 3", "begin -1 1") for step in CALL]


class Header(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory()
        cls.folder = pathlib.Path(cls.temporary.name)
        (cls.folder / "steps.c").write_text(STEPS)
        cls.compile("C99", cls.folder / "steps.c", cls.folder / "steps")

    @classmethod
    def tearDownClass(cls):
        cls.temporary.cleanup()

    @staticmethod
    def compile(language, source, program):
        run = subprocess.run([*LANGUAGES[language], *STRICT, source, "-o", program], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr

    def steps(self, steps, **filters):
        """Where a program that does these steps wrote, and the error it printed."""
        path = pathlib.Path(tempfile.mkdtemp(dir=self.folder)) / "dump"
        run = subprocess.run([self.folder / "steps", path, *steps], env={**os.environ, **filters}, capture_output=True, text=True)
        self.assertEqual(run.returncode, 1 if run.stdout else 0)
        return path, run.stdout

    def check_example(self, path):
        dump = open_dump(path)
        self.assertEqual(dump.info["engine"], "my port 0.3")
        self.assertEqual([(c.request, c.positions, c.tokens) for c in dump.calls], [("0", (0, 1, 2), (5, 6, 7)), ("0", (3,), (8,))])
        bits = 0x3F80 + 16 + numpy.concatenate([numpy.arange(24), numpy.arange(8)]).reshape(4, 8)
        self.assertTrue((dump.bits("moe_ffn_out", 1) == bits).all())
        self.assertTrue((dump["moe_router_indices", 1] == numpy.arange(1, 4)).all())
        self.assertTrue((dump["lm_head", None] == numpy.array([[7], [8]]) + numpy.arange(11)).all())
        self.assertEqual([c.recorded["lm_head"] for c in dump.calls], [1, 1])
        return dump

    def test_example(self):
        for language in LANGUAGES:
            program, path = self.folder / f"engine {language}", self.folder / f"dump {language}"
            self.compile(language, EXAMPLES / "engine.c", program)
            self.assertEqual(subprocess.run([program, path], capture_output=True, text=True).stderr, "")
            self.assertEqual(self.check_example(path).calls[0].mode, "eager")
            self.assertEqual(sorted(path.rglob("*.part")) + sorted(path.rglob("*.new")), [])
            again = subprocess.run([program, path], capture_output=True, text=True)
            self.assertEqual(again.returncode, 1)
            self.assertIn("folder: cannot be made: expected a new one in one that is there", again.stderr)

    def test_rust(self):
        if not shutil.which("rustc"):
            self.skipTest("no rustc")
        program, path = self.folder / "engine_rs", self.folder / "dump rust"
        run = subprocess.run(["rustc", "-D", "warnings", EXAMPLES / "engine.rs", "-o", program], capture_output=True, text=True)
        self.assertEqual(run.returncode, 0, run.stderr)
        subprocess.run([program, path], check=True)
        self.check_example(path)

    def test_shapes_and_positions(self):
        path, error = self.steps([*CALL, *NEXT, "close"])
        dump = open_dump(path)
        self.assertEqual((error, dump.info["calls"], dump.calls[1].positions), ("", 2, (3,)))
        self.assertEqual((dump["embedding", None].shape, dump["q_norm", 1].shape), ((4, 8), (4, 4, 2)))
        first = 1000 + numpy.arange(24, dtype="f4").reshape(3, 4, 2)
        self.assertTrue((dump["q_norm", 1] == numpy.concatenate([first, first[:1]])).all())
        self.assertEqual((path / "layer_01/q_norm.npy").stat().st_size, 128 + 4 * 32)

    def test_filters(self):
        for filters, keys, rows in (
            ({"STAGES": "embedding,x"}, [("embedding", None)], 4),
            ({"STAGES": "x,embeddings"}, [], 0),
            ({"LAYERS": "1"}, [("embedding", None), ("q_norm", 1)], 4),
            ({"LAYERS": "0", "STAGES": "q_norm"}, [("q_norm", 0)], 4),
            ({"CALLS": "1", "STAGES": "q_norm"}, [("q_norm", 0), ("q_norm", 1)], 1),
            ({"LAST": "2", "STAGES": "q_norm"}, [("q_norm", 0), ("q_norm", 1)], 3),
        ):
            path, error = self.steps([*CALL, *NEXT, "close"], **filters)
            dump = open_dump(path)
            self.assertEqual((error, sorted(dump, key=str), len(dump.calls)), ("", sorted(keys, key=str), 2))
            for key in keys:
                self.assertEqual(len(dump[key]), rows)
        self.assertTrue((dump["q_norm", 0][:2] == numpy.arange(8, 24, dtype="f4").reshape(2, 4, 2)).all())

    def test_a_stage_of_later_calls(self):
        late = ["embedding -1 0 1 8 0", "lm_head -1 1 1 5 0"]
        path, error = self.steps(["begin 0 2", "embedding -1 0 2 8 0", "lm_head -1 1 0 5 0", "end", "begin 2 1", *late, "end", "close"])
        dump = open_dump(path)
        self.assertEqual((error, dump["lm_head", None].shape, dump.rows("lm_head", None, call=0).shape), ("", (1, 5), (0, 5)))

    def test_refused(self):
        for steps, words in (
            (["embedding -1 0 3 8 0"], "layer -1, embedding: expected moe_diag_dump_begin before"),
            (["begin 0 0"], "begin: expected the end of the call before, rows"),
            (["begin 0 1", "begin 0 1"], "begin: expected the end of the call before"),
            (["end"], "end: expected moe_diag_dump_begin before"),
            (["begin 0 1", "close"], "close: expected the end of the call before"),
            (["begin 0 1", "q_norm 2000 0 1 8 0"], "layer 2000, q_norm: expected a layer from -1 on"),
            (["begin 0 1", "q_norm 0 0 2 8 0"], "up to the rows of the call"),
            (["begin 0 1", "q_norm 0 9 1 8 0"], "a type and a width"),
            (["begin 0 1", "q_norm 0 0 1 8 0", "q_norm 0 0 1 8 0"], "once a call"),
            (["begin 0 2", "q_norm 0 0 2 8 0", "q_norm 1 0 1 8 0"], "as many rows in each layer"),
            ([*CALL, "begin 3 1", "q_norm 0 0 1 2 4"], "call 1, layer 0, q_norm: expected type and shape as before"),
            ([*CALL, "begin 3 1", "q_norm 0 2 1 4 2"], "expected type and shape as before"),
            ([*CALL, "begin 3 1", "k_norm 0 0 1 4 2"], "k_norm: expected type and shape as before, once a call, from the first"),
            ([*CALL, "begin 3 1", "q_norm 0 0 1 4 2", "end"], "layer 1, q_norm: is missing: calls before had it"),
        ):
            path, error = self.steps([*steps, "end", "close"] if steps[-1] != "close" else steps)
            self.assertIn(words, error)
            with self.assertRaisesRegex(DumpError, "was cut|has no calls.jsonl"):
                open_dump(path)
            if steps[:1] == CALL[:1] and len(steps) > 5:
                self.assertEqual(open_dump(path, cut_ok=True)["q_norm", 1].shape, (3, 4, 2))

    def test_cut(self):
        path, _ = self.steps([*CALL, "begin 3 1", "embedding -1 0 1 8 0"])
        with self.assertRaisesRegex(DumpError, "was cut"):
            open_dump(path)
        dump = open_dump(path, cut_ok=True)
        self.assertEqual((len(dump.calls), dump["embedding", None].shape), (1, (3, 8)))


if __name__ == "__main__":
    unittest.main()
