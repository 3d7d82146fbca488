// SPDX-License-Identifier: MIT
#include "core/ops/linear.hpp"

#include <numeric>
#include <vector>

#include "core/ops/sizes.hpp"

namespace moe_diag::host {

Values linear(const Matrix& matrix, std::span<const double> x, std::span<const std::int64_t> rows) {
  const std::int64_t cols = matrix.weight->cols;
  expect_multiple("linear", "values of x", cols, size_of(x));
  const std::size_t n = x.size() / at(cols);
  Values out(n * rows.size());
  for (std::size_t j = 0; j < rows.size(); ++j) {
    const Values row = decode_row(matrix, rows[j]);
    for (std::size_t i = 0; i < n; ++i) out[i * rows.size() + j] = dot(row, x.subspan(i * at(cols), at(cols)));
  }
  return out;
}
Values linear(const Matrix& matrix, std::span<const double> x) {
  std::vector<std::int64_t> all(at(matrix.weight->rows));
  std::iota(all.begin(), all.end(), std::int64_t{0});
  return linear(matrix, x, all);
}

}  // namespace moe_diag::host

namespace moe_diag {
namespace {

host::Values compute(const StepRows& rows) {
  const host::Values x = rows.operand();
  std::vector<host::Values> products;
  for (const Weight* weight : rows.step.weights) products.push_back(host::linear(rows.matrix(*weight), x));
  return rows.by_row([&](std::size_t r) {
    host::Values side_by_side;
    for (const host::Values& product : products) {
      const auto width = static_cast<std::ptrdiff_t>(product.size() / rows.count());
      const auto first = product.begin() + static_cast<std::ptrdiff_t>(r) * width;
      side_by_side.insert(side_by_side.end(), first, first + width);
    }
    return side_by_side;
  });
}

}  // namespace

const Operator linear_op{
    .name = "linear",
    .weights = WeightRows::all,
    .squared_error = squared_error_of_product,
    .cost = cost_of_weights,
    .compute = compute,
};

}  // namespace moe_diag
