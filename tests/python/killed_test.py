# SPDX-License-Identifier: MIT
"""A capture that is killed at any moment never looks complete unless it is."""

import os
import pathlib
import random
import subprocess
import tempfile
import time
import unittest

from moe_diag import CaptureError, open_capture

CONTRACT = """
metadata: {id: killed, version: 1.0.0, description: a capture that takes a while}
model: {synthetic: tiny, seed: 7, layers: 16}
prompts: [{id: short, tokens: [3, 141, 59, 26, 53, 58, 97, 93, 23, 84], chunk: 4}]
lanes: {f32: {backend: cpu, numerics: f32}}
capture: [{stages: all, to: [folder, file]}]
sinks: {folder: {sink: npy, dir: dump}, file: {sink: hdf5, file: capture.h5}}
"""


def is_complete(path):
    """Whether the capture says that it is; then it has to be."""
    try:
        capture = open_capture(path)
    except CaptureError:
        return False
    capture.check()
    assert len(capture) == 16 * 23 + 3, len(capture)
    return True


class Killed(unittest.TestCase):
    def test_twenty_moments(self):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            (folder / "c.yaml").write_text(CONTRACT)

            def capture(out):
                command = [os.environ["MOE_DIAG_EXE"], "capture", folder / "c.yaml", "--out", out]
                return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

            start = time.monotonic()
            self.assertEqual(capture(folder / "whole").wait(), 0)
            whole = time.monotonic() - start
            self.assertTrue(is_complete(folder / "whole/dump") and is_complete(folder / "whole/capture.h5"))

            seed = random.randrange(1 << 32)
            moments = random.Random(seed)
            killed = begun = 0
            for i in range(20):
                out = folder / str(i)
                process = capture(out)
                # Half of the moments lie in the capture itself, which is the last part of the run.
                if i % 2:
                    while process.poll() is None and not (out / "dump/incomplete").exists():
                        time.sleep(0.0005)
                time.sleep(moments.uniform(0, whole / 2 if i % 2 else whole))
                process.kill()
                killed += process.wait() == -9
                begun += (out / "dump/incomplete").exists()
                complete = [is_complete(out / "dump"), is_complete(out / "capture.h5")]
                if (out / "dump/incomplete").exists():
                    self.assertFalse((out / "dump/manifest.json").exists() and not complete[0], f"seed {seed}, {i}")
            self.assertGreater(killed, 0)
            self.assertGreater(begun, 0)


if __name__ == "__main__":
    unittest.main()
