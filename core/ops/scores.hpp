// SPDX-License-Identifier: MIT
#pragma once

#include <span>

#include "core/ops/attention.hpp"
#include "core/ops/operator.hpp"

namespace moe_diag::host {

// One position's scores, [heads, total]: q . k * scale for the keys seen, 0 after them. q is [heads, h], keys are
// [at least seen, kv_heads, h], or rows that begin with these.
Values scores(const Attention& attention, std::span<const double> q, std::span<const double> keys, double scale);

}  // namespace moe_diag::host

namespace moe_diag {

extern const Operator scores_op;

}  // namespace moe_diag
