# SPDX-License-Identifier: MIT
"""What docs/judge-a-kernel.md shows comes out, command after command."""
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/judge-a-kernel.md").read_text()


def shown():
    """The page's commands, each with the lines shown after it."""
    part = PAGE.split("<!-- kernel page: run -->")[1].split("<!-- end of kernel page -->")[0]
    commands = []
    for block in re.findall(r"^```\n(.*?)^```", part, flags=re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                commands.append((line[2:], []))
            elif line:
                commands[-1][1].append(line)
    return commands


class KernelPage(unittest.TestCase):
    def test_commands_print_what_the_page_shows(self):
        commands = shown()
        self.assertGreaterEqual(len(commands), 5)
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(ROOT / "docs/examples", pathlib.Path(folder) / "docs/examples")
            for command, lines in commands:
                words = command.split()
                words[0] = {"moe-diag": os.environ["MOE_DIAG_EXE"], "python3": sys.executable}[words[0]]
                run = subprocess.run(words, cwd=folder, capture_output=True, text=True)
                printed = iter(run.stdout.splitlines())
                for line in lines:
                    self.assertIn(line, printed, f"{command}\n{run.stdout}{run.stderr}")  # in this order


if __name__ == "__main__":
    unittest.main()
