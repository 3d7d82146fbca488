// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <cstddef>
#include <cstring>

#include "core/api/blocks.hpp"
#include "core/api/model.hpp"
#include "core/api/tensor.hpp"
#include "core/ops/values.hpp"

// The sums of kernels that are wrong, each of one row of a weight.
namespace moe_diag::test {

using host::Values;

inline float bf16(double x) { return float{BF16(x)}; }
inline float f16(double x) { return float{F16(x)}; }

// How a kernel adds the products of one row of the weight.
using Sum = double (*)(const Weight&, const std::byte* row, const Values& x);

inline Values decoded(const Weight& weight, const std::byte* row) {
  Values w;
  for (std::int64_t k = 0; k < weight.cols; ++k) w.push_back(decode<double>(weight.type, row, k));
  return w;
}

template <class Keep>
double sum_where(const Weight& weight, const std::byte* row, const Values& x, Keep keep) {
  const Values w = decoded(weight, row);
  double sum = 0;
  for (std::size_t k = 0; k < w.size(); ++k) sum += keep(k, w.size()) ? w[k] * x[k] : 0;
  return sum;
}

inline double half_of_k(const Weight& weight, const std::byte* row, const Values& x) {
  return sum_where(weight, row, x, [](std::size_t k, std::size_t n) { return k < n / 2; });
}

inline double other_half_of_k(const Weight& weight, const std::byte* row, const Values& x) {
  return sum_where(weight, row, x, [](std::size_t k, std::size_t n) { return k >= n / 2; });
}

inline double second_warp(const Weight& weight, const std::byte* row, const Values& x) {
  return sum_where(weight, row, x, [](std::size_t k, std::size_t) { return k / 32 % 4 == 1; });
}

inline double without_every_fifth(const Weight& weight, const std::byte* row, const Values& x) {
  return sum_where(weight, row, x, [](std::size_t k, std::size_t) { return k % 5 != 0; });
}

inline double half_counted_half(const Weight& weight, const std::byte* row, const Values& x) {
  const Values w = decoded(weight, row);
  double sum = 0;
  for (std::size_t k = 0; k < w.size(); ++k) sum += w[k] * x[k] * (k < w.size() / 2 ? 1 : 0.5);
  return sum;
}

inline double without_tail(const Weight& weight, const std::byte* row, const Values& x) {
  return sum_where(weight, row, x, [](std::size_t k, std::size_t n) { return k < n - n % 96; });
}

inline double first_warp(const Weight& weight, const std::byte* row, const Values& x) {
  return sum_where(weight, row, x, [](std::size_t k, std::size_t) { return k / 32 % 4 == 0; });
}

inline double bf16_sums(const Weight& weight, const std::byte* row, const Values& x) {
  const Values w = decoded(weight, row);
  float sum = 0;
  for (std::size_t k = 0; k < w.size(); ++k) sum = bf16(double{sum} + w[k] * x[k]);
  return sum;
}

inline double f16_sums(const Weight& weight, const std::byte* row, const Values& x) {
  const Values w = decoded(weight, row);
  float sum = 0;
  for (std::size_t k = 0; k < w.size(); ++k) sum = f16(double{sum} + w[k] * x[k]);
  return sum;
}

inline double bf16_sums_back(const Weight& weight, const std::byte* row, const Values& x) {
  const Values w = decoded(weight, row);
  float sum = 0;
  for (std::size_t k = w.size(); k-- > 0;) sum = bf16(double{sum} + w[k] * x[k]);
  return sum;
}

inline double bf16_sums_of_two(const Weight& weight, const std::byte* row, const Values& x) {
  const Values w = decoded(weight, row);
  float sums[2] = {0, 0};
  for (std::size_t k = 0; k < w.size(); ++k) sums[k % 2] = bf16(double{sums[k % 2]} + w[k] * x[k]);
  return bf16(double{sums[0]} + double{sums[1]});
}

// The min of value k of a row, which is subtracted.
inline double min_of(const Weight& weight, const std::byte* row, std::size_t k) {
  const auto in_block = [&](auto block, auto min) {
    std::memcpy(&block, row + k / decltype(block)::elements * sizeof block, sizeof block);
    return min(block, static_cast<int>(k) % decltype(block)::elements);
  };
  const auto of_groups = [](const auto& b, int i) {
    return double{float_from_f16(b.dmin)} * q4_k_scale_min(b.groups, i / 32).min;
  };
  const auto of_block = [](const auto& b, int) { return -double{float_from_f16(b.m)}; };
  switch (weight.type) {
    case BlockType::q4_k: return in_block(BlockQ4_K(), of_groups);
    case BlockType::q5_k: return in_block(BlockQ5_K(), of_groups);
    case BlockType::q2_k:
      return in_block(BlockQ2_K(), [](const BlockQ2_K& b, int i) {
        return double{float_from_f16(b.dmin)} * (b.groups[i / 16] >> 4);
      });
    case BlockType::q4_1: return in_block(BlockQ4_1(), of_block);
    case BlockType::q5_1: return in_block(BlockQ5_1(), of_block);
    default: return 0;
  }
}

template <int Part>
double less_mins(const Weight& weight, const std::byte* row, const Values& x) {
  Values w = decoded(weight, row);
  for (std::size_t k = 0; k < w.size(); ++k) w[k] += min_of(weight, row, k) / Part;
  return host::dot(w, x);
}

// Integers of Q6_K and Q3_K times the scale of the group before, and the block's.
inline double scale_of_the_group_before(const Weight& weight, const std::byte* row, const Values& x) {
  double sum = 0;
  for (std::size_t k = 0; k < x.size(); ++k) {
    const int i = static_cast<int>(k % 256), group = (i / 16 + 15) % 16;
    if (weight.type == BlockType::q6_k) {
      BlockQ6_K b;
      std::memcpy(&b, row + k / 256 * sizeof b, sizeof b);
      const int half = i / 128, j = i % 128;
      const int q = (b.ql[half * 64 + j % 64] >> (j / 64 * 4) & 15) | (b.qh[half * 32 + j % 32] >> (j / 32 * 2) & 3)
                                                                          << 4;
      sum += x[k] * float_from_f16(b.d) * b.groups[group] * (q - 32);
    } else {
      BlockQ3_K b;
      std::memcpy(&b, row + k / 256 * sizeof b, sizeof b);
      const int q = (b.q[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3) | (b.high[i % 32] >> (i / 32) & 1) << 2;
      sum += x[k] * float_from_f16(b.d) * (q3_k_scale(b.groups, group) - 32) * (q - 4);
    }
  }
  return sum;
}

}  // namespace moe_diag::test
