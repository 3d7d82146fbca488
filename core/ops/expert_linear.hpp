// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>

#include "core/ops/linear.hpp"
#include "core/ops/matrix.hpp"
#include "core/ops/operator.hpp"

namespace moe_diag::host {

// out[i, slot] = W[experts[i, slot]] x; `experts` is [n, used], x is [n, cols] or [n, used, cols], out [n, used, rows].
// The matrix's own expert is not used.
Values expert_linear(const Matrix& matrix, std::span<const std::int32_t> experts, std::int64_t used,
                     std::span<const double> x, const Sum& sum = dot);

}  // namespace moe_diag::host

namespace moe_diag {

extern const Operator expert_linear_op;

}  // namespace moe_diag
