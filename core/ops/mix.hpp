// SPDX-License-Identifier: MIT
#pragma once

#include <span>

#include "core/ops/attention.hpp"
#include "core/ops/operator.hpp"

namespace moe_diag::host {

// One position's sums, [heads, h], of probability times value over the keys seen. `probs` is [heads, total].
Values mix(const Attention& attention, std::span<const double> probs, std::span<const double> values);

}  // namespace moe_diag::host

namespace moe_diag {

extern const Operator mix_op;

}  // namespace moe_diag
