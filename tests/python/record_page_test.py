# SPDX-License-Identifier: MIT
"""What docs/record-tensors.md shows is in its examples, and does what the page says."""

import importlib.util
import inspect
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

import moe_diag
import numpy
from moe_diag.record import MODES, _difference, _plan, _ranges, _requests

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/record-tensors.md").read_text()
EXAMPLES = ROOT / "docs/examples/record"


class Page(unittest.TestCase):
    def test_code_is_that_of_the_examples(self):
        shown = re.findall(r"<!-- example: (.*?) -->\n```\w+\n(.*?)```", PAGE, re.DOTALL)
        self.assertEqual([name for name, _ in shown], ["engine.py", "engine.c", "engine.rs"])
        for name, code in shown:
            self.assertIn(code, (EXAMPLES / name).read_text())

    def test_python(self):
        read, output = re.search(
            r"<!-- read a dump -->\n```python\n(.*?)```.*?<!-- python output -->\n```\n(.*?)```", PAGE, re.DOTALL
        ).groups()
        with tempfile.TemporaryDirectory() as folder:
            run = lambda *words: subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True)  # noqa: E731
            engine = run(EXAMPLES / "engine.py", "dump")
            self.assertEqual((engine.stdout, engine.stderr), (output.split(">")[0] + ">\n", ""))
            shown = run("-c", read)
            self.assertEqual((shown.stdout, shown.stderr), (output, ""))
            dump = moe_diag.open_dump(f"{folder}/dump")
            self.assertEqual(dump.bits("moe_ffn_out", 1).ravel()[:24].tolist(), list(range(0x3F90, 0x3F90 + 24)))
            # The line and the file that the page shows as the layout are those of this dump.
            layout = json.loads(re.search(r'\*\*dump.json.\*\* `(.*?)`', PAGE)[1])
            self.assertEqual(layout, {key: value for key, value in dump.info.items() if key in layout})
            self.assertEqual({"request": "r0", **json.loads(re.search(r"\*\*calls.jsonl.\*\* `(.*?)`", PAGE)[1])}["tokens"], [5, 6, 7])

    def test_options_are_those_that_there_are(self):
        tables = {"| option |": (moe_diag.record,), "| of `Recorder` |": (moe_diag.Recorder, moe_diag.Recorder.call)}
        for head, functions in tables.items():
            rows = PAGE[PAGE.index(head) :].split("\n\n")[0].splitlines()[2:]
            named = {name for row in rows for cell in re.findall(r"`([^`]*=[^`]*)`", row.split(" | ")[0]) for name in re.findall(r"(\w+)=", cell)}
            known = {name for function in functions for name in inspect.signature(function).parameters} | set(moe_diag.recorder.FACTS)
            self.assertEqual(named - known, set(), head)
            self.assertGreater(len(named), 5)
        for mode in MODES:
            self.assertIn(f'`"{mode}"`' if mode != "eager" else '`mode="eager"`', PAGE)


class Record(unittest.TestCase):
    def test_torch_is_not_loaded(self):
        run = subprocess.run([sys.executable, "-c", "import sys, moe_diag; print('torch' in sys.modules)"], capture_output=True, text=True)
        self.assertEqual(run.stdout, "False\n")

    def test_calls(self):
        self.assertEqual(_plan(11, 4, 2), [(0, 4), (4, 4), (8, 3), (11, 1), (12, 1)])
        self.assertEqual(_plan(3, None, 0), [(0, 3)])
        self.assertEqual(_requests([1, 2]), [[1, 2]])
        self.assertEqual(_requests(numpy.array([[1, 2], [3, 4]])), [[1, 2], [3, 4]])
        self.assertEqual(_requests([[1], numpy.array([2, 3])]), [[1], [2, 3]])
        for wrong in ([], [[]], [1.5], "ab"):
            with self.assertRaisesRegex(moe_diag.RecordError, "ids: expected a list of tokens"):
                _requests(wrong)
        self.assertEqual(_ranges([0, 1, 2, 5, 7, 8]), "0 to 2, 5, 7 to 8")

    def test_logits(self):
        rows = [numpy.array([3, 4], numpy.float32), numpy.array([numpy.nan, 1], numpy.float32)]
        self.assertEqual(_difference(rows, [row.copy() for row in rows]), 0.0)
        self.assertAlmostEqual(_difference(rows[:1], [numpy.array([3, 4.05], numpy.float32)]), 0.01, places=6)
        self.assertEqual(_difference(rows, [rows[0], numpy.array([0, 1], numpy.float32)]), float("inf"))

    @unittest.skipUnless(importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"), "no torch and transformers")
    def test_a_model(self):
        script = [sys.executable, ROOT / "tests/device/record_hf.py", "--device", "cpu", "--modes", "eager", "--only", "one call"]
        run = subprocess.run(script, capture_output=True, text=True, env=os.environ)
        self.assertEqual(run.returncode, 0, run.stdout + run.stderr)


if __name__ == "__main__":
    unittest.main()
