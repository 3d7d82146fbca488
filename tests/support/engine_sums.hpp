// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <cstddef>
#include <cstring>

#include "core/api/blocks.hpp"
#include "core/api/model.hpp"
#include "core/ops/rounding.hpp"
#include "core/ops/values.hpp"

// The sums of kernels that are wrong, each of one row of a weight.
namespace moe_diag::test {

using host::Values;

inline float bf16(double x) { return static_cast<float>(host::rounded(Values{x}, host::Rounding::bf16)[0]); }
inline float f16(double x) { return static_cast<float>(host::rounded(Values{x}, host::Rounding::f16)[0]); }

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

template <int Part>
double less_mins(const Weight& weight, const std::byte* row, const Values& x) {
  Values w = decoded(weight, row);
  for (std::size_t k = 0; k < w.size(); ++k) {
    BlockQ4_K block;
    std::memcpy(&block, row + k / 256 * sizeof block, sizeof block);
    w[k] +=
        double{float_from_f16(block.dmin)} * q4_k_scale_min(block.groups, static_cast<int>(k % 256 / 32)).min / Part;
  }
  return host::dot(w, x);
}

inline double scale_of_the_group_before(const Weight& weight, const std::byte* row, const Values& x) {
  Values w = decoded(weight, row);
  for (std::size_t k = 0; k < w.size(); ++k) {
    BlockQ6_K block;
    std::memcpy(&block, row + k / 256 * sizeof block, sizeof block);
    const std::size_t group = k % 256 / 16;
    if (block.groups[group] != 0) w[k] = w[k] / block.groups[group] * block.groups[(group + 15) % 16];
  }
  return host::dot(w, x);
}

}  // namespace moe_diag::test
