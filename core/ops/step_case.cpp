// SPDX-License-Identifier: MIT
#include "core/ops/step_case.hpp"

#include <algorithm>
#include <cmath>

namespace moe_diag {

std::string_view name_of(StepCause cause) {
  constexpr std::string_view names[] = {"none",
                                        "uniform_weights",
                                        "dropped_expert",
                                        "zero",
                                        "bitflip",
                                        "skipped",
                                        "permutation",
                                        "shifted_position",
                                        "stale_kv",
                                        "window",
                                        "variant",
                                        "function",
                                        "eps",
                                        "rope_theta",
                                        "rotation",
                                        "wrong_tensor",
                                        "transposed",
                                        "wrong_type",
                                        "partial_sum",
                                        "accumulation",
                                        "cache_type",
                                        "rounded_activations",
                                        "scale",
                                        "operator"};
  return names[static_cast<std::size_t>(cause)];
}

std::vector<double> errors_of_elements(const StepCase& c, const StepUnit& unit) {
  std::vector<double> off(static_cast<std::size_t>(unit.size));
  for (std::int64_t i = 0; i < unit.size; ++i) {
    const double b = value_at(c.b, unit.in_b(i)), difference = std::fabs(value_at(c.a, unit.in_a(i)) - b);
    off[static_cast<std::size_t>(i)] = difference / unit.tolerance(1, std::fabs(b));
  }
  return off;
}

std::vector<std::int64_t> wrong_elements(const StepCase& c, const StepUnit& unit, double of_the_worst) {
  const std::vector<double> off = errors_of_elements(c, unit);
  double worst = 0;
  for (const double x : off)
    if (std::isfinite(x)) worst = std::max(worst, x);
  std::vector<std::int64_t> wrong;
  for (std::int64_t i = 0; i < unit.size; ++i)
    if (!(off[static_cast<std::size_t>(i)] <= std::max(element_error, of_the_worst * worst))) wrong.push_back(i);
  return wrong;
}

bool differs_where_finite(const StepCase& c, const FailingUnits& units) {
  const bool is_double = c.a.dtype == DType::f64;
  for (const StepUnit* unit : units)
    for (std::int64_t i = 0; i < unit->size; ++i) {
      const double a = value_at(c.a, unit->in_a(i)), b = value_at(c.b, unit->in_b(i));
      if (std::isfinite(a) && a != (is_double ? b : static_cast<double>(static_cast<float>(b)))) return true;
    }
  return false;
}

}  // namespace moe_diag
