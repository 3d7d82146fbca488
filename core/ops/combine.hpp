// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>

#include "core/ops/operator.hpp"
#include "core/ops/values.hpp"

namespace moe_diag::host {

// One position's sum over slots, in slot order; x is [slots, width].
Values combine(std::span<const double> x, std::int64_t slots);
// The same, each slot counted as often as `times` says.
Values combine(std::span<const double> x, std::span<const double> times);

}  // namespace moe_diag::host

namespace moe_diag {

extern const Operator combine_op;

// Errors of a sum are expected in proportion to it. Where what the experts give cancels, they are larger: the root of
// the sum of their squares, by the result, and at least 1. `slots`: a row of the step's input.
double cancellation_of_experts(std::span<const double> slots, std::span<const double> results);

}  // namespace moe_diag
