// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "core/api/model.hpp"
#include "core/api/tensor.hpp"

// The operators of the program (enum class Op in core/api/step.hpp), one function each, in plain double on host data.
// They say what is computed, not how to compute it fast, and they can be told to compute it wrongly: with another
// expert's rows, another block type, other pairs. Arrays are row-major; a size that does not fit throws Error.
namespace moe_diag::host {

using Values = std::vector<double>;

// Values of any lane, as doubles: all rows, or `count` rows from `first` on.
Values values_of(const Tensor& tensor);
Values values_of(const Tensor& tensor, std::int64_t first, std::int64_t count);

// A [rows, cols] matrix of a weight: which bytes it is read from, and how. As the file says unless changed.
struct Matrix {
  explicit Matrix(const Weight& w, std::int64_t of_expert = 0) : weight(&w), expert(of_expert), type(w.type) {}

  const Weight* weight;
  std::int64_t expert;
  BlockType type;           // rows and experts lie as this type packs them; past the tensor's bytes all are zero
  bool transposed = false;  // element (r, c) is taken from place c * rows + r of the expert's elements
};

// Whether rows of the weight are whole blocks of the type: another one cannot be read.
bool can_read(const Weight& weight, BlockType type);

// How activations can be rounded before a product reads them.
enum class Rounding {
  bf16,  // ties to even
  f16,   // ties to even
  q8_0,  // blocks of 32 in steps of largest / 127, the step kept as f16; ties to even
  q8_1,  // the same, the step kept as f32; ties to even
  q8_k,  // blocks of 256 in steps of f32, the largest becomes -127; ties to even
};
std::string_view name_of(Rounding rounding);
std::int64_t block_of(Rounding rounding);  // values that share a step

// x is whole blocks of finite values. Sources: ggml/src/ggml-quants.c (quantize_row_q8_K_ref, as x86
// with FMA compiles it), ggml/src/ggml-cpu/arch/x86/quants.c (quantize_row_q8_0, with AVX2).
Values rounded(std::span<const double> x, Rounding rounding);

// Row r of the matrix: [cols].
Values decode_row(const Matrix& matrix, std::int64_t r);

double dot(std::span<const double> a, std::span<const double> b);

// out[i, j] = row rows[j] of the matrix times x[i]; x is [n, cols]. Without `rows`: all of them, in order.
Values linear(const Matrix& matrix, std::span<const double> x, std::span<const std::int64_t> rows);
Values linear(const Matrix& matrix, std::span<const double> x);

// out[i, slot] = W[experts[i, slot]] x; `experts` is [n, used], x is [n, cols] or [n, used, cols], out [n, used, rows].
// The matrix's own expert is not used.
Values expert_linear(const Matrix& matrix, std::span<const std::int32_t> experts, std::int64_t used,
                     std::span<const double> x);

// Row tokens[i] of the table each: [n, cols].
Values embed(const Matrix& table, std::span<const std::int32_t> tokens);

struct NormOptions {
  double eps = 0;
  bool normalise = true;  // false: x * w
};
// Per group of w.size() values: x / sqrt(mean(x^2) + eps) * w.
Values rms_norm(std::span<const double> x, std::span<const double> w, const NormOptions& options);

enum class RopePairs {
  halves,      // (i, i + h/2), what Qwen3 does
  neighbours,  // (2i, 2i + 1)
};
struct RopeOptions {
  double theta = 0;
  RopePairs pairs = RopePairs::halves;
};
// One position's heads, [heads, h]: rotates pair i of each by position * theta^(-2i/h).
Values rope(std::span<const double> x, std::int64_t head_dim, std::int64_t position, const RopeOptions& options);

// What scores and mix know of attention: query head j reads kv head j / (heads / kv_heads), and `seen` keys.
struct Attention {
  std::int64_t heads = 0, kv_heads = 0, head_dim = 0;
  std::int64_t seen = 0;   // keys up to the own position
  std::int64_t total = 0;  // length of the whole sequence, the width of a head's row of scores
};
// One position's scores, [heads, total]: q . k * scale for the keys seen, 0 after them. q is [heads, h], keys are
// [at least seen, kv_heads, h].
Values scores(const Attention& attention, std::span<const double> q, std::span<const double> keys, double scale);
// One position's sums, [heads, h], of probability times value over the keys seen. `probs` is [heads, total].
Values mix(const Attention& attention, std::span<const double> probs, std::span<const double> values);

// Per group of `width` values: over its first `seen`, 0 after them.
Values softmax(std::span<const double> x, std::int64_t width, std::int64_t seen);

Values add(std::span<const double> a, std::span<const double> b);

struct Chosen {
  std::vector<std::int32_t> experts;  // the `used` most probable, best first, ties to the lower id
  Values weights;                     // their share of the sum
};
// One position's choice from the probabilities of all experts.
Chosen topk(std::span<const double> probs, std::int64_t used);

// silu(gate) * up
Values swiglu(std::span<const double> gate, std::span<const double> up);

// x[slot] * weights[slot]; x is [slots, width].
Values weigh(std::span<const double> x, std::span<const double> weights);

// One position's sum over slots, in slot order; x is [slots, width].
Values combine(std::span<const double> x, std::int64_t slots);

}  // namespace moe_diag::host
