# SPDX-License-Identifier: MIT
"""What llama.cpp's eval callback showed is read and judged: it computes what its files say, and a rounded cache is found."""

import json
import os
import pathlib
import subprocess
import tempfile
import unittest

import numpy
from moe_diag import load_safetensors

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"


class LlamaCpp(unittest.TestCase):
    def judge(self, name, change=None):
        """The verdict on the dump, and what the program printed. `change` gets the arrays by their files' names."""
        arrays = load_safetensors(str(GOLDEN / f"llama_cpp/{name}.safetensors"))
        if change:
            change(arrays)
        with tempfile.TemporaryDirectory() as folder:
            for file, array in arrays.items():
                path = pathlib.Path(folder, "dump", file)
                path.parent.mkdir(parents=True, exist_ok=True)
                numpy.save(path, array)
            command = [os.environ["MOE_DIAG_EXE"], "judge", GOLDEN / f"hf/{name}.gguf", f"{folder}/dump", "--map", "llama.cpp", "--out", f"{folder}/out"]
            run = subprocess.run(command, capture_output=True, text=True)
            self.assertIn(run.returncode, (0, 1), run.stderr)
            return json.loads(pathlib.Path(folder, "out/verdict.json").read_text()), run.stdout

    def test_sound(self):
        for name in ("forty_tokens", "qwen2moe_forty_tokens"):
            with self.subTest(name):
                verdict, text = self.judge(name)
                self.assertIn("HELD", text)
                self.assertIn("q8_k fits", text)
                self.assertIn("a KV cache in f16 fits", text)
                for falsifier in verdict["falsifiers"]:
                    self.assertEqual(falsifier["outcome"], "held", falsifier["id"])
                    self.assertGreater(falsifier["samples"], 2)

    def test_a_wrong_value_is_named_with_llama_cpp_s_file(self):
        def change(arrays):
            for call in range(3):
                arrays[f"call_{call}/ffn_moe_out-1.0.npy"] = arrays[f"call_{call}/ffn_moe_out-1.0.npy"] * numpy.float32(1.5)

        _, text = self.judge("forty_tokens", change)
        self.assertIn("FALSIFIED", text)
        self.assertIn("layer 1, moe_ffn_out", text)
        self.assertIn("call_0/ffn_moe_out-1.0.npy, byte 128", text)


if __name__ == "__main__":
    unittest.main()
