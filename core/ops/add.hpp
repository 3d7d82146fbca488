// SPDX-License-Identifier: MIT
#pragma once

#include <span>

#include "core/ops/operator.hpp"
#include "core/ops/values.hpp"

namespace moe_diag::host {

// a + b, value by value.
Values add(std::span<const double> a, std::span<const double> b);

}  // namespace moe_diag::host

namespace moe_diag {

extern const Operator add_op;

}  // namespace moe_diag
