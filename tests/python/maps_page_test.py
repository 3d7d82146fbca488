# SPDX-License-Identifier: MIT
"""What docs/maps.md shows is read by the program, and its callback writes what numpy reads."""

import os
import pathlib
import re
import subprocess
import tempfile
import unittest

import numpy

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/maps.md").read_text()
EXAMPLE = ROOT / "docs/examples/record/llama_dump.cpp"

# As much of llama.cpp's headers as the callback needs.
GGML = """#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
enum ggml_type { GGML_TYPE_F32 = 0, GGML_TYPE_F16 = 1, GGML_TYPE_I32 = 26 };
struct ggml_tensor { ggml_type type; int64_t ne[4]; size_t nb[4]; const char* data; char name[64]; };
inline size_t ggml_type_size(ggml_type type) { return type == GGML_TYPE_F16 ? 2 : 4; }
inline size_t ggml_nbytes(const ggml_tensor* t) {
  size_t bytes = ggml_type_size(t->type);
  for (int i = 0; i < 4; ++i) bytes += (t->ne[i] - 1) * t->nb[i];
  return bytes;
}
inline void ggml_backend_tensor_get(const ggml_tensor* t, void* to, size_t first, size_t bytes) {
  std::memcpy(to, t->data + first, bytes);
}
"""
ENGINE = """
int main(int, char** argv) {
  LlamaDump dump;
  dump.folder = argv[1];
  float values[24];
  for (int i = 0; i < 24; ++i) values[i] = i;
  const char* data = reinterpret_cast<const char*>(values);
  begin_call(dump, {5, 6, 7}, 0);
  ggml_tensor view = {GGML_TYPE_F32, {2, 3, 1, 1}, {4, 32, 96, 96}, data, "ffn_moe_topk-1"};  // of rows of 8
  ggml_tensor row = {GGML_TYPE_F32, {8, 1, 1, 1}, {4, 32, 32, 32}, data, "result_output"};
  ggml_tensor node = {GGML_TYPE_F32, {8, 1, 1, 1}, {4, 32, 32, 32}, data, "Qcur-0 (view)"};
  for (ggml_tensor* t : {&view, &view, &row, &node})
    if (!dump_tensor(t, true, &dump) || !dump_tensor(t, false, &dump)) return 1;
  begin_call(dump, {8}, 3);
  return !dump_tensor(&row, false, &dump);
}
"""


class MapsPage(unittest.TestCase):
    def test_code_is_that_of_the_example(self):
        shown = re.search(r"<!-- example: llama_dump.cpp -->\n```cpp\n(.*?)```", PAGE, re.DOTALL)[1]
        self.assertIn(shown, EXAMPLE.read_text())

    def test_callback_writes_views_as_numpy_reads_them(self):
        with tempfile.TemporaryDirectory() as folder:
            for header in ("ggml.h", "ggml-backend.h"):
                pathlib.Path(folder, header).write_text(GGML)
            source, program, dump = (os.path.join(folder, name) for name in ("engine.cpp", "engine", "dump"))
            pathlib.Path(source).write_text(EXAMPLE.read_text() + ENGINE)
            compiler = os.environ.get("CXX", "c++")
            subprocess.run([compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror", "-Wno-sign-compare", "-Wno-sign-conversion", f"-I{folder}", source, "-o", program], check=True)
            os.mkdir(dump)
            subprocess.run([program, dump], check=True)
            rows = numpy.arange(24, dtype=numpy.float32).reshape(3, 8)
            load = lambda name: numpy.load(f"{dump}/{name}.npy")  # noqa: E731
            for n in range(2):
                numpy.testing.assert_array_equal(load(f"call_0/ffn_moe_topk-1.{n}"), rows[:, :2])
            numpy.testing.assert_array_equal(load("call_1/result_output.0"), rows[0])
            self.assertEqual(load("call_0/tokens").tolist(), [5, 6, 7])
            self.assertEqual(load("call_1/positions").tolist(), [3])
            self.assertEqual(sorted(os.listdir(f"{dump}/call_0")), ["ffn_moe_topk-1.0.npy", "ffn_moe_topk-1.1.npy", "positions.npy", "result_output.0.npy", "tokens.npy"])

    def test_maps_of_the_page_are_right(self):
        shown = re.findall(r"```yaml\n(map: 1\n.*?)```", PAGE, re.DOTALL)
        self.assertEqual(len(shown), 2)
        exe = os.environ["MOE_DIAG_EXE"]
        known = subprocess.run([exe, "maps"], capture_output=True, text=True, check=True).stdout
        for name in re.findall(r"`--map ([a-z.]+)`", PAGE):
            self.assertIn(name, known.split())
            shown.append(subprocess.run([exe, "maps", name], capture_output=True, text=True, check=True).stdout)
        with tempfile.TemporaryDirectory() as folder:
            model = f"{folder}/model.gguf"
            subprocess.run([exe, "synth", model], capture_output=True, check=True)
            for text in shown:
                pathlib.Path(folder, "map.yaml").write_text(text)
                os.makedirs(f"{folder}/dump", exist_ok=True)
                run = subprocess.run([exe, "judge", model, f"{folder}/dump", "--map", f"{folder}/map.yaml"], capture_output=True, text=True)
                self.assertEqual(run.returncode, 2)
                self.assertRegex(run.stderr, "there is nothing|has to say tokens")  # the map itself is right


if __name__ == "__main__":
    unittest.main()
