// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>

#include "core/ops/matrix.hpp"
#include "core/ops/operator.hpp"

namespace moe_diag::host {

// out[i, j] = row rows[j] of the matrix times x[i]; x is [n, cols]. Without `rows`: all of them, in order.
Values linear(const Matrix& matrix, std::span<const double> x, std::span<const std::int64_t> rows);
Values linear(const Matrix& matrix, std::span<const double> x);

}  // namespace moe_diag::host

namespace moe_diag {

extern const Operator linear_op;

}  // namespace moe_diag
