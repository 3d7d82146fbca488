// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "core/api/tensor.hpp"

namespace moe_diag {

// Calls f with the typed pointer to element `at`.
template <class F>
auto with_values(const Tensor& t, std::int64_t at, F f) {
  switch (t.dtype) {
    case DType::f64: return f(t.as<double>() + at);
    case DType::i32: return f(t.as<std::int32_t>() + at);
    case DType::f32: break;
  }
  return f(t.as<float>() + at);
}
template <class F>
auto with_pair(const Tensor& a, std::int64_t at_a, const Tensor& b, std::int64_t at_b, F f) {
  return with_values(a, at_a,
                     [&](const auto* pa) { return with_values(b, at_b, [&](const auto* pb) { return f(pa, pb); }); });
}

// x - x is 0 for finite x and NaN otherwise: a test that vectorises.
constexpr bool is_finite(double x) { return x - x == 0; }

}  // namespace moe_diag
