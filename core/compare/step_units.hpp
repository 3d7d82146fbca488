// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/compare/explain_step.hpp"
#include "core/compare/samples.hpp"

namespace moe_diag {

// What of a step's output is compared together: the columns of one weight in one row, or one expert's slot of a row.
struct StepUnit {
  int row = 0;
  int slot = -1, expert = -1;     // -1: not of one expert
  std::size_t part = 0;           // of the weights that write side by side
  std::int64_t first = 0;         // column of element 0
  std::vector<Segment> segments;  // all of the same length: one, or a head each
  std::int64_t size = 0;          // elements
  double expected = 0;            // relative error
  double rms = 0;                 // of the oracle's elements
  double error = 0;               // |a - b| / |b|, in expected errors; infinite for new non-finite values
  bool fails = false;

  std::int64_t run() const { return segments[0].n; }
  std::int64_t in_a(std::int64_t i) const { return segments[static_cast<std::size_t>(i / run())].a + i % run(); }
  std::int64_t in_b(std::int64_t i) const { return segments[static_cast<std::size_t>(i / run())].b + i % run(); }
  // How far element i, of that size, may be off when the unit's error is `errors` expected ones.
  double tolerance(double errors, double size_of_element) const {
    return errors * expected * (size_of_element > rms ? size_of_element : rms);
  }
};

// Value i of a tensor of any type.
double value_at(const Tensor& tensor, std::int64_t i);

// Throws Error(environment) for tensors that do not fit the step.
void check_case(const StepCase& step_case, const ModelConfig& config);

// All units of a case of values, by row, then slot or part. Checks the case.
std::vector<StepUnit> units_of(const StepCase& step_case, const ModelConfig& config);

// Expected errors beyond which an element of a unit that fails is wrong.
inline constexpr double element_error = 8;

// How far each element of a unit is off, in expected errors.
std::vector<double> errors_of_elements(const StepCase& step_case, const StepUnit& unit);

// Elements of a unit that are farther off than its expected error lets them be, ascending; those that are small beside
// `of_the_worst` times the worst one are left out.
std::vector<std::int64_t> wrong_elements(const StepCase& step_case, const StepUnit& unit, double of_the_worst);

// How far chosen elements of the lane's output are from those predicted, in expected errors. Infinite when one is
// finite and the other is not (for the lane's type), or when none is finite.
double error_of(const StepCase& step_case, const StepUnit& unit, std::span<const std::int64_t> elements,
                std::span<const double> predicted);

}  // namespace moe_diag
