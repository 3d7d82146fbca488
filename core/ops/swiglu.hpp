// SPDX-License-Identifier: MIT
#pragma once

#include <span>

#include "core/ops/operator.hpp"
#include "core/ops/values.hpp"

namespace moe_diag::host {

// silu(gate) * up
Values swiglu(std::span<const double> gate, std::span<const double> up);

}  // namespace moe_diag::host

namespace moe_diag {

extern const Operator swiglu_op;

void add_swiglu_hypotheses(const Operands& operands, const FailingUnits& failing, HypothesisList& list);

}  // namespace moe_diag
