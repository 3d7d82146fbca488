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

}  // namespace moe_diag
