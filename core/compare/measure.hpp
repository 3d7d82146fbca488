// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "core/api/tensor.hpp"

namespace moe_diag {

// What one pass over two runs of values gives; `a` is the lane judged, `b` what it is compared with.
// Sums are in double. A non-finite value makes every difference NaN: it is never small.
struct Measure {
  std::int64_t count = 0;
  std::int64_t nonfinite_a = 0, nonfinite_b = 0;
  std::int64_t nonfinite_new = 0;         // in a where b is finite
  std::int64_t first_nonfinite_new = -1;  // element
  double dot = 0, squares_a = 0, squares_b = 0, squares_diff = 0;
  double max_abs = 0;           // of the finite differences
  std::int64_t max_index = -1;  // element of max_abs
  double a_at_max = 0, b_at_max = 0;

  // Adds `n` elements, from `at_a` of a and `at_b` of b on. Elements reported are counted from the first one added.
  void add(const Tensor& a, std::int64_t at_a, const Tensor& b, std::int64_t at_b, std::int64_t n);

  // Each is NaN when nothing was added.
  double cosine() const;  // 1 for two zero vectors, 0 when only one is zero
  double rel_l2() const;  // |a - b| / |b|; 0 for two zero vectors, infinite when only b is zero
  double max_diff() const;

  bool finite() const { return nonfinite_a == 0 && nonfinite_b == 0; }
};

// Elements with |a - b| > atol + rtol |b|, non-finite ones always.
std::int64_t mismatches(const Tensor& a, std::int64_t at_a, const Tensor& b, std::int64_t at_b, std::int64_t n,
                        double rtol, double atol);

// The largest distance in units in the last place of f32: how many floats lie between a value of a and that of b, both
// rounded to f32 first. The two zeros are one. NaN when a value is not finite, or is not after rounding.
double ulp_distance(const Tensor& a, std::int64_t at_a, const Tensor& b, std::int64_t at_b, std::int64_t n);

// How many times its floor an error is: 0 for no error whatever the floor, infinite for an error above a floor of 0.
double noise_ratio(double error, double floor);

// Non-finite elements of one run of values.
std::int64_t count_nonfinite(const Tensor& a, std::int64_t at, std::int64_t n);

// Sum of n elements from `at`.
double sum(const Tensor& a, std::int64_t at, std::int64_t n);

}  // namespace moe_diag
