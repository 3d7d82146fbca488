// SPDX-License-Identifier: MIT
#include "core/ops/linear.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>
#include <vector>

#include "core/ops/sizes.hpp"

namespace moe_diag::host {

Values linear(const Matrix& matrix, std::span<const double> x, std::span<const std::int64_t> rows, const Sum& sum) {
  const std::int64_t cols = matrix.weight->cols;
  expect_multiple("linear", "values of x", cols, size_of(x));
  const std::size_t n = x.size() / at(cols);
  Values out(n * rows.size());
  for (std::size_t j = 0; j < rows.size(); ++j) {
    const Values row = decode_row(matrix, rows[j]);
    for (std::size_t i = 0; i < n; ++i) out[i * rows.size() + j] = sum(row, x.subspan(i * at(cols), at(cols)));
  }
  return out;
}
Values linear(const Matrix& matrix, std::span<const double> x, const Sum& sum) {
  std::vector<std::int64_t> all(at(matrix.weight->rows));
  std::iota(all.begin(), all.end(), std::int64_t{0});
  return linear(matrix, x, all, sum);
}

Sum counted(std::vector<int> columns, int times) {
  return [columns = std::move(columns), times](std::span<const double> row, std::span<const double> x) {
    double sum = dot(row, x);
    for (const int k : columns) sum += (times - 1) * row[at(k)] * x[at(k)];
    return sum;
  };
}

void add_bias(const Weight& bias, Values& rows) {
  const Values values = decode_row(Matrix(bias), 0);
  expect_multiple("add_bias", "values of rows", size_of(values), size_of(rows));
  for (std::size_t i = 0; i < rows.size(); ++i) rows[i] += values[i % values.size()];
}

}  // namespace moe_diag::host

namespace moe_diag {
namespace {

host::Values compute(const StepRows& rows) {
  const host::Values x = rows.operand();
  std::vector<host::Values> products;
  for (const Weight* weight : rows.step.weights) {
    products.push_back(host::linear(rows.matrix(*weight), x, sum_of(rows)));
    if (const Weight* bias = rows.step.bias(products.size() - 1)) host::add_bias(*bias, products.back());
  }
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

host::Sum sum_of(const StepRows& rows) {
  if (rows.is(Fault::Kind::partial_sum)) return host::counted(rows.inputs.part, rows.fault->times);
  if (!rows.is(Fault::Kind::accumulate)) return host::dot;
  return type_kept(*rows.fault) == BlockType::f16 ? host::added_in<F16> : host::added_in<BF16>;
}

double cancellation(const Step& step, std::span<const double> input, double result) {
  if (operator_of(step).weights != WeightRows::all || step.weights.size() != 1 || step.weights[0]->rows != 1) return 1;
  return cancellation(*step.weights[0], input, {&result, 1});
}

double cancellation(const Weight& weight, std::span<const double> input, std::span<const double> results) {
  double terms = 0, all = 0;
  for (std::int64_t r = 0; r < weight.rows; ++r) {
    const host::Values row = host::decode_row(host::Matrix(weight), r);
    for (std::size_t i = 0; i < std::min(row.size(), input.size()); ++i) terms += row[i] * input[i] * row[i] * input[i];
  }
  for (const double result : results) all += result * result;
  return all == 0 ? 1 : std::max(1.0, std::sqrt(terms / all));
}

double cancellation_of_outliers(const host::Matrix& weight, std::span<const double> input,
                                std::span<const double> results) {
  constexpr double outweighs = 0.02;  // of all squares
  constexpr int most = 16;
  double all = 0;
  for (const double result : results) all += result * result;
  double terms = all, largest = 0;
  int outliers = 0;
  for (std::size_t r = 0; r < results.size() && outliers < most; ++r) {
    const double own = results[r] * results[r];
    if (!(own > outweighs * all)) continue;
    ++outliers;
    largest += own;
    terms -= own;
    const host::Values row = host::decode_row(weight, static_cast<std::int64_t>(r));
    for (std::size_t i = 0; i < std::min(row.size(), input.size()); ++i) terms += row[i] * input[i] * row[i] * input[i];
  }
  // The error of a few values is no mean of many: it may be twice as large once in a while.
  const double few = largest > all / 2 ? 2 : 1;
  return all == 0 ? 1 : few * std::max(1.0, std::sqrt(terms / all));
}

const Operator linear_op{
    .name = "linear",
    .weights = WeightRows::all,
    .adds_biases = true,
    .squared_error = squared_error_of_product,
    .cost = cost_of_weights,
    .compute = compute,
};

}  // namespace moe_diag
