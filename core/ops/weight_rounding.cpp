// SPDX-License-Identifier: MIT
#include "core/ops/weight_rounding.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "core/ops/sizes.hpp"

namespace moe_diag::host {
namespace {

// Some rows of a matrix in f32, in memory that belongs to somebody else.
struct Strip {
  float* values;
  std::size_t rows, cols;
};

// The nearest value of FP8 E4M3, the largest one beyond 448; ties to even. In few instructions: a model has many
// weights.
float nearest_e4m3(float x) {
  constexpr std::uint32_t dropped = 20;  // bits of the significand
  constexpr float smallest = 0x1p-6F, step = 0x1p-9F, largest = 448;
  if (!(std::fabs(x) >= smallest)) return std::nearbyint(x / step) * step;
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits = (bits + (1U << (dropped - 1)) - 1 + (bits >> dropped & 1)) >> dropped << dropped;
  std::memcpy(&x, &bits, sizeof bits);
  return std::clamp(x, -largest, largest);
}

// The power of two that is not below a scale; NaN stays.
float power_of_two_above(float scale) {
  int exponent = 0;
  const float part = std::frexp(scale, &exponent);
  return std::isnan(scale) ? scale : std::ldexp(1.0F, part == 0.5F ? exponent - 1 : exponent);
}

// NaN when a value of the block is not finite.
float largest_of(const Strip& strip, std::size_t col, std::size_t end) {
  float largest = 0;
  for (std::size_t r = 0; r < strip.rows; ++r)
    for (std::size_t c = col; c < end; ++c) {
      const float size = std::fabs(strip.values[r * strip.cols + c]);
      if (!std::isfinite(size)) return std::numeric_limits<float>::quiet_NaN();
      largest = std::max(largest, size);
    }
  return largest;
}

void round_blocks(const Strip& strip, bool power_of_two) {
  constexpr float least = 1e-4F;  // of a largest value
  for (std::size_t col = 0; col < strip.cols; col += at(weight_block)) {
    const std::size_t end = std::min(strip.cols, col + at(weight_block));
    const float largest = largest_of(strip, col, end);
    float scale = (largest < least ? least : largest) / 448.0F;
    if (power_of_two) scale = power_of_two_above(scale);
    const float inverse = 1.0F / scale;
    for (std::size_t r = 0; r < strip.rows; ++r)
      for (std::size_t c = col; c < end; ++c) {
        float& value = strip.values[r * strip.cols + c];
        value = nearest_e4m3(value * inverse) * scale;
      }
  }
}

template <class T>
void store(const Values& row, T* out) {
  for (const double v : row) *out++ = T(v);
}

}  // namespace

BlockType type_of(WeightRounding rounding) {
  return rounding == WeightRounding::bf16 ? BlockType::bf16 : BlockType::f32;
}

void round_rows(const Matrix& matrix, std::int64_t first, WeightRounding rounding, std::byte* out) {
  const std::int64_t cols = matrix.weight->cols, rows = std::min(weight_block, matrix.weight->rows - first);
  for (std::int64_t r = 0; r < rows; ++r) {
    const Values row = decode_row(matrix, first + r);
    if (rounding == WeightRounding::bf16)
      store(row, reinterpret_cast<BF16*>(out) + r * cols);
    else
      store(row, reinterpret_cast<float*>(out) + r * cols);
  }
  if (rounding != WeightRounding::bf16)
    round_blocks({reinterpret_cast<float*>(out), at(rows), at(cols)}, rounding == WeightRounding::fp8_block_pow2);
}

}  // namespace moe_diag::host
