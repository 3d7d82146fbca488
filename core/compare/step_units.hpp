// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/api/model.hpp"
#include "core/ops/step_case.hpp"

namespace moe_diag {

// Throws Error(environment) for tensors that do not fit the step.
void check_case(const StepCase& step_case, const ModelConfig& config);

// All units of a case of values, by row, then slot or part. Checks the case.
std::vector<StepUnit> units_of(const StepCase& step_case, const ModelConfig& config);

// How far chosen elements of the lane's output are from those predicted, in expected errors. Infinite when one is
// finite and the other is not (for the lane's type), or when none is finite.
double error_of(const StepCase& step_case, const StepUnit& unit, std::span<const std::int64_t> elements,
                std::span<const double> predicted);

}  // namespace moe_diag
