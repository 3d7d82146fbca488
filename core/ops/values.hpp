// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "core/api/tensor.hpp"

namespace moe_diag {

// Calls f with the typed pointer to element `at`.
template <class F>
auto with_values(const Tensor& t, std::int64_t at, F f) {
  switch (t.dtype) {
    case DType::f64: return f(t.as<double>() + at);
    case DType::i32: return f(t.as<std::int32_t>() + at);
    case DType::f16: return f(t.as<F16>() + at);
    case DType::bf16: return f(t.as<BF16>() + at);
    case DType::f32: break;
  }
  return f(t.as<float>() + at);
}
template <class F>
auto with_pair(const Tensor& a, std::int64_t at_a, const Tensor& b, std::int64_t at_b, F f) {
  return with_values(a, at_a,
                     [&](const auto* pa) { return with_values(b, at_b, [&](const auto* pb) { return f(pa, pb); }); });
}

// Index of the largest of n elements from `at`, the lower one of equals; -1 when one is NaN.
inline std::int64_t argmax(const Tensor& a, std::int64_t at, std::int64_t n) {
  return with_values(a, at, [&](const auto* p) {
    std::int64_t best = 0;
    for (std::int64_t k = 0; k < n; ++k) {
      if (std::isnan(static_cast<double>(p[k]))) return std::int64_t{-1};
      if (p[k] > p[best]) best = k;
    }
    return best;
  });
}

// Of a type of values: bits of the significand, and its range.
struct Precision {
  int digits;
  double smallest, largest;  // normal number; finite number

  double epsilon() const { return std::ldexp(1.0, 1 - digits); }
};
constexpr Precision precision_of(DType dtype) {
  switch (dtype) {
    case DType::f64: return {53, 0x1p-1022, std::numeric_limits<double>::max()};
    case DType::f16: return {11, 0x1p-14, 65504};
    case DType::bf16: return {8, 0x1p-126, 0x1.FEp127};
    case DType::i32:
    case DType::f32: break;
  }
  return {24, 0x1p-126, std::numeric_limits<float>::max()};
}

// x - x is 0 for finite x and NaN otherwise: a test that vectorises.
constexpr bool is_finite(double x) { return x - x == 0; }

// Value i of a tensor of any type.
inline double value_at(const Tensor& tensor, std::int64_t i) {
  return with_values(tensor, i, [](const auto* p) { return static_cast<double>(*p); });
}

}  // namespace moe_diag

namespace moe_diag::host {

using Values = std::vector<double>;

// Values of any lane, as doubles: all rows, or `count` rows from `first` on.
Values values_of(const Tensor& tensor);
Values values_of(const Tensor& tensor, std::int64_t first, std::int64_t count);

double dot(std::span<const double> a, std::span<const double> b);

}  // namespace moe_diag::host
