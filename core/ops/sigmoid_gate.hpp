// SPDX-License-Identifier: MIT
#pragma once

#include <span>

#include "core/ops/operator.hpp"
#include "core/ops/values.hpp"

namespace moe_diag::host {

// A row times the sigmoid of its gate.
Values sigmoid_gate(std::span<const double> x, double gate);

}  // namespace moe_diag::host

namespace moe_diag {

extern const Operator sigmoid_gate_op;

}  // namespace moe_diag
