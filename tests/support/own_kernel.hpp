// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "core/file/safetensors_file.hpp"
#include "core/kernel/case_index.hpp"
#include "core/ops/rounding.hpp"
#include "tests/support/temporary_folder.hpp"

namespace moe_diag::test {

// A safetensors file, read whole.
struct OwnFile {
  explicit OwnFile(const std::string& path) : bytes(read_text(path)), file(parse_safetensors(bytes)) {}
  OwnFile(const OwnFile&) = delete;
  OwnFile& operator=(const OwnFile&) = delete;

  StoredTensor tensor(const std::string& name) const { return stored(*file.find(name)); }

  std::string bytes;
  SafetensorsFile file;
};

// A user's test of a fused MoE, with what it has at hand: nothing but the files of a case.
struct OwnCase {
  int rows = 0, used = 0, experts = 0;
  std::int64_t hidden = 0, width = 0;
  std::vector<float> x, weights;      // [rows, hidden], [rows, used]
  std::vector<std::int32_t> ids;      // [rows, used]
  std::vector<float> gate, up, down;  // [experts, width, hidden] twice, [experts, hidden, width]
};

// Mistakes of the user's kernel, none unless set.
struct OwnMistakes {
  std::function<int(int id, int slot)> expert = {};  // whose weights are read for an expert
  std::function<float(float weight, int id, int slot)> weight = {};
  bool swaps = false;                          // gate and up
  std::function<bool(int rows)> applies = {};  // only in cases of so many rows
  std::function<void(int rows, std::vector<float>& out)> after = {};
};

inline std::vector<float> floats_of(const StoredTensor& t) {
  std::vector<float> values;
  for (std::int64_t i = 0; i < t.shape.count(); ++i) values.push_back(static_cast<float>(t.tensor().value(i)));
  return values;
}

// The operand of a matmul as a kernel of these numerics reads it.
inline std::vector<float> operand(const std::string& numerics, std::vector<float> x) {
  if (numerics == "f32") return x;
  const host::Rounding way = numerics == "bf16"   ? host::Rounding::bf16
                             : numerics == "q8_k" ? host::Rounding::q8_k
                                                  : host::Rounding::q8_1;
  const host::Values rounded = host::rounded(host::Values(x.begin(), x.end()), way);
  return {rounded.begin(), rounded.end()};
}

inline std::vector<float> matmul(const std::string& numerics, const float* matrix, std::int64_t rows,
                                 const std::vector<float>& x) {
  const auto cols = static_cast<std::int64_t>(x.size());
  std::vector<float> out;
  for (std::int64_t r = 0; r < rows; ++r) {
    float sum = 0;
    for (std::int64_t c = 0; c < cols; ++c) {
      const float w = matrix[r * cols + c];
      sum += (numerics == "bf16" ? float{BF16(static_cast<double>(w))} : w) * x[static_cast<std::size_t>(c)];
    }
    out.push_back(sum);
  }
  return out;
}

// The user's kernel: from the normalised row to the sum over its experts, in float.
inline std::vector<float> fused_moe(const OwnCase& c, const std::string& numerics, const OwnMistakes& mistakes) {
  const bool wrong = !mistakes.applies || mistakes.applies(c.rows);
  std::vector<float> out(static_cast<std::size_t>(c.rows * c.hidden));
  for (int row = 0; row < c.rows; ++row) {
    const auto from = c.x.begin() + row * c.hidden;
    const std::vector<float> x = operand(numerics, {from, from + c.hidden});
    for (int slot = 0; slot < c.used; ++slot) {
      const auto at = static_cast<std::size_t>(row * c.used + slot);
      const int id = c.ids[at], expert = wrong && mistakes.expert ? mistakes.expert(id, slot) : id;
      const float weight = wrong && mistakes.weight ? mistakes.weight(c.weights[at], id, slot) : c.weights[at];
      std::vector<float> gate = matmul(numerics, c.gate.data() + expert * c.width * c.hidden, c.width, x);
      std::vector<float> up = matmul(numerics, c.up.data() + expert * c.width * c.hidden, c.width, x);
      if (wrong && mistakes.swaps) std::swap(gate, up);
      for (std::size_t i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
      const std::vector<float> y =
          matmul(numerics, c.down.data() + expert * c.width * c.hidden, c.hidden, operand(numerics, gate));
      for (std::int64_t i = 0; i < c.hidden; ++i)
        out[static_cast<std::size_t>(row * c.hidden + i)] += weight * y[static_cast<std::size_t>(i)];
    }
  }
  if (wrong && mistakes.after) mistakes.after(c.rows, out);
  return out;
}

inline OwnCase own_case(const CaseIndex& index, const KernelCase& c, const OwnFile& in, const OwnFile& weights) {
  const auto value_of = [&](std::size_t i) { return floats_of(weights.tensor(index.layers[0].weights[i].f32)); };
  OwnCase own;
  own.rows = c.rows;
  own.used = index.used;
  own.experts = index.experts;
  own.hidden = index.layers[0].weights[0].shape[2];
  own.width = index.layers[0].weights[0].shape[1];
  own.x = floats_of(in.tensor("ffn_norm"));
  own.weights = floats_of(in.tensor("moe_router_weights"));
  const StoredTensor ids = in.tensor(index.choice);
  own.ids.assign(ids.tensor().as<std::int32_t>(), ids.tensor().as<std::int32_t>() + ids.shape.count());
  own.gate = value_of(0);
  own.up = value_of(1);
  own.down = value_of(2);
  return own;
}

// Writes what a kernel gave; replaces what was there.
inline void write_out(const std::string& path, const StoredTensor& out) {
  std::filesystem::remove(path);
  write_safetensors(path, {source_of(out)});
}
inline StoredTensor out_of(const std::string& name, const std::vector<float>& values, const Shape& shape,
                           DType dtype = DType::f32) {
  StoredTensor out{name, dtype, shape, {}};
  out.bytes.resize(values.size() * size_of(dtype));
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::f32) reinterpret_cast<float*>(out.bytes.data())[i] = values[i];
    if (dtype == DType::f64) reinterpret_cast<double*>(out.bytes.data())[i] = static_cast<double>(values[i]);
    if (dtype == DType::f16) reinterpret_cast<F16*>(out.bytes.data())[i] = F16(static_cast<double>(values[i]));
    if (dtype == DType::bf16) reinterpret_cast<BF16*>(out.bytes.data())[i] = BF16(static_cast<double>(values[i]));
  }
  return out;
}

// The user's test: runs the kernel on every case of one layer, and writes what it gave.
inline void run_own_kernel(const std::string& folder, const OwnMistakes& mistakes = {}, DType dtype = DType::f32) {
  const CaseIndex index = read_index(folder);
  const OwnFile weights(folder + "/" + index.layers[0].file);
  for (const KernelCase& c : index.cases) {
    const OwnFile in(folder + "/" + c.name + "/in.safetensors");
    const OwnCase own = own_case(index, c, in, weights);
    write_out(folder + "/" + c.name + "/out.safetensors",
              out_of(index.output, fused_moe(own, index.numerics, mistakes), Shape{c.rows, own.hidden}, dtype));
  }
}

}  // namespace moe_diag::test
