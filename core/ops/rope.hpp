// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>

#include "core/ops/operator.hpp"
#include "core/ops/values.hpp"

namespace moe_diag::host {

enum class RopePairs {
  halves,      // (i, i + h/2), what Qwen3 does
  neighbours,  // (2i, 2i + 1)
};
struct RopeOptions {
  double theta = 0;
  RopePairs pairs = RopePairs::halves;
  // Forms that engines have by mistake:
  std::int64_t columns = 0;  // the first ones of a head, rotated as if they were all of it; 0: all
  double divisor = 1;        // of positions
};
// One position's heads, [heads, h]: rotates pair i of each by position * theta^(-2i/h).
Values rope(std::span<const double> x, std::int64_t head_dim, std::int64_t position, const RopeOptions& options);

}  // namespace moe_diag::host

namespace moe_diag {

extern const Operator rope_op;

void add_rope_hypotheses(const Operands& operands, const FailingUnits& failing, HypothesisList& list);

}  // namespace moe_diag
