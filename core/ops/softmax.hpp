// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>

#include "core/ops/operator.hpp"
#include "core/ops/values.hpp"

namespace moe_diag::host {

// Per group of `width` values: over its first `seen`, 0 after them.
Values softmax(std::span<const double> x, std::int64_t width, std::int64_t seen);

// The same over the last `window` of those.
Values windowed_softmax(std::span<const double> x, std::int64_t width, std::int64_t seen, std::int64_t window);
// 1 / (1 + exp(-x)) of each.
Values sigmoids(Values x);

}  // namespace moe_diag::host

namespace moe_diag {

extern const Operator softmax_op;

// Typical size of the scores and of the router logits that carry the probability: the error of their rounding is that
// of the exponential's exponent.
inline constexpr double logit_size = 4;

void add_softmax_hypotheses(const Operands& operands, const FailingUnits& failing, HypothesisList& list);

}  // namespace moe_diag
