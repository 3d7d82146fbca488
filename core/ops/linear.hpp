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
// Adds it to each row.
void add_bias(const Weight& bias, Values& rows);

}  // namespace moe_diag::host

namespace moe_diag {

extern const Operator linear_op;

// Errors are expected in proportion to results. A matmul of one row has one, which may be near 0 where its terms
// cancel: the root of the sum of their squares, by the result, and at least 1. For all other steps, 1. `input`: a row
// of the step's first.
double cancellation(const Step& step, std::span<const double> input, double result);
// The same of all rows of a weight that has few, and of the norm of their results: it may be small by chance, too.
double cancellation(const Weight& weight, std::span<const double> input, std::span<const double> results);

}  // namespace moe_diag
