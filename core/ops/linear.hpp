// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "core/ops/matrix.hpp"
#include "core/ops/operator.hpp"

namespace moe_diag::host {

// The products of a row of a weight and an input, added up.
using Sum = std::function<double(std::span<const double> row, std::span<const double> x)>;

// out[i, j] = row rows[j] of the matrix times x[i]; x is [n, cols]. Without `rows`: all of them, in order.
Values linear(const Matrix& matrix, std::span<const double> x, std::span<const std::int64_t> rows,
              const Sum& sum = dot);
Values linear(const Matrix& matrix, std::span<const double> x, const Sum& sum = dot);
// Adds it to each row.
void add_bias(const Weight& bias, Values& rows);

// ---- sums as some kernels have them --------------------------------------------------------------------------------

// The sum is rounded to that type of 16 bits behind every product.
template <class Type>
double added_in(std::span<const double> row, std::span<const double> x) {
  double sum = 0;
  for (std::size_t k = 0; k < row.size(); ++k) sum = float{Type(sum + row[k] * x[k])};
  return sum;
}

// Some columns count `times` as often as they should.
Sum counted(std::vector<int> columns, int times);

}  // namespace moe_diag::host

namespace moe_diag {

extern const Operator linear_op;

// How the rows of a product are added: as they should be, or as the fault has it.
host::Sum sum_of(const StepRows& rows);

// Errors are expected in proportion to results. A matmul of one row has one, which may be near 0 where its terms
// cancel: the root of the sum of their squares, by the result, and at least 1. For all other steps, 1. `input`: a row
// of the step's first.
double cancellation(const Step& step, std::span<const double> input, double result);
// The same of all rows of a weight that has few, and of the norm of their results: it may be small by chance, too.
double cancellation(const Weight& weight, std::span<const double> input, std::span<const double> results);
// The same of a weight with many rows, of which a few results outweigh all others: massive activations.
double cancellation_of_outliers(const host::Matrix& weight, std::span<const double> input,
                                std::span<const double> results);

}  // namespace moe_diag
