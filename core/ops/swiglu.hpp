// SPDX-License-Identifier: MIT
#pragma once

#include <span>

#include "core/ops/operator.hpp"
#include "core/ops/values.hpp"

namespace moe_diag::host {

// silu(gate) * up
Values swiglu(std::span<const double> gate, std::span<const double> up);

// An activation in its place.
Values activated(std::span<const double> gate, std::span<const double> up, Fault::Form form);
// silu(gate) * up with the two in other places, of one slot: swapped; side by side, [gate, up], and read as pairs
// (2i, 2i + 1); pairs that are read as halves.
Values misplaced_swiglu(std::span<const double> gate, std::span<const double> up, Fault::Form form);

}  // namespace moe_diag::host

namespace moe_diag {

extern const Operator swiglu_op;

void add_swiglu_hypotheses(const Operands& operands, const FailingUnits& failing, HypothesisList& list);

}  // namespace moe_diag
