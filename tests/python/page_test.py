# SPDX-License-Identifier: MIT
"""The code of docs/captures-in-python.md does what the page says, and the plot is what the example draws."""

import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/captures-in-python.md").read_text()
EXAMPLE = ROOT / "docs/examples/error_over_layers"


def commands():
    """The lines of the page's shell blocks, each a command of the tool or of Python."""
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)).replace("\\\n", " ")
    return [line for line in blocks.splitlines() if line and not line.startswith("export")]


class Page(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = pathlib.Path(temporary.name)
        for name in ("contracts", "docs"):
            (self.folder / name).symlink_to(ROOT / name)
        bin_folder = self.folder / "bin"
        bin_folder.mkdir()
        (bin_folder / "moe-diag").symlink_to(os.environ["MOE_DIAG_EXE"])
        (bin_folder / "python3").write_text(f"#!/bin/sh\nexec '{sys.executable}' \"$@\"\n")
        (bin_folder / "python3").chmod(0o755)
        self.environment = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}"}

    def run_in_folder(self, command, **more):
        return subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True, **more)

    def test_everything_on_the_page(self):
        run, capture, draw = commands()
        self.assertEqual(self.run_in_folder(run, shell=True).returncode, 1)  # the planted fault is found
        code = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
        shown = "".join(re.findall(r"<!-- python output -->\n```\n(.*?)```", PAGE, re.DOTALL))
        python = self.run_in_folder([sys.executable, "-c", "\n".join(code[:-1])])
        self.assertEqual((python.stdout, python.stderr), (shown, ""))
        self.assertIn(code[-1], (EXAMPLE / "error_over_layers.py").read_text())

        for command in (capture, draw):
            finished = self.run_in_folder(command, shell=True)
            self.assertEqual(finished.returncode, 0, finished.stderr)
        drawn = (self.folder / "error_over_layers.svg").read_text()
        self.assertEqual(drawn, (ROOT / "docs/error_over_layers.svg").read_text())

    def test_what_fails_was_not_captured(self):
        """The page's loop over failures, on what quickstart itself captures: the last position of some stages."""
        fault = "{inject: scale, stage: moe_ffn_out, layer: 1, lane: step, positions: 0}"
        run = self.run_in_folder(["moe-diag", "run", "contracts/quickstart.yaml", "--out", "out", "--inject", fault])
        self.assertEqual(run.returncode, 1, run.stderr)
        loop = [code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "capture.join(" in code]
        start = "import numpy\nfrom moe_diag import open_capture\ncapture = open_capture('out')\n"
        python = self.run_in_folder([sys.executable, "-c", start + "\n".join(loop)])
        self.assertEqual(python.stderr, "")
        self.assertIn("STEP-ERROR longer 1 moe_ffn_out 0\n", python.stdout)
        self.assertIn("layer 1, moe_ffn_out of lane 'step' was captured at 7, not at position 0", python.stdout)
        # The same fault in a stage that is not captured at all.
        other = ["--overwrite", "--inject", fault.replace("moe_ffn_out", "ffn_norm")]
        run = self.run_in_folder(["moe-diag", "run", "contracts/quickstart.yaml", "--out", "out", *other])
        self.assertEqual(run.returncode, 1, run.stderr)
        python = self.run_in_folder([sys.executable, "-c", start + "\n".join(loop)])
        self.assertEqual(python.stderr, "")
        self.assertIn("layer 1, ffn_norm of lane 'step' was not captured for prompt 'short'", python.stdout)


if __name__ == "__main__":
    unittest.main()
