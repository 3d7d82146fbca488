// SPDX-License-Identifier: MIT
#pragma once

#include <span>

#include "core/ops/operator.hpp"
#include "core/ops/values.hpp"

namespace moe_diag::host {

// x[slot] * weights[slot]; x is [slots, width].
Values weigh(std::span<const double> x, std::span<const double> weights);

}  // namespace moe_diag::host

namespace moe_diag {

extern const Operator weigh_op;

}  // namespace moe_diag
