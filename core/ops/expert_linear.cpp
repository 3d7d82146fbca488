// SPDX-License-Identifier: MIT
#include "core/ops/expert_linear.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <vector>

#include "core/ops/linear.hpp"
#include "core/ops/sizes.hpp"

namespace moe_diag::host {

Values expert_linear(const Matrix& matrix, std::span<const std::int32_t> experts, std::int64_t used,
                     std::span<const double> x, const Sum& sum) {
  const std::size_t cols = at(matrix.weight->cols), rows = at(matrix.weight->rows);
  expect_multiple("expert_linear", "experts chosen", used, static_cast<std::int64_t>(experts.size()));
  const bool own_input = x.size() == experts.size() * cols;
  if (!own_input)
    expect("expert_linear", "values of x", static_cast<std::int64_t>(experts.size() * cols) / used, size_of(x));
  std::map<std::int32_t, std::vector<std::size_t>> places;  // by expert: its rows are decoded once
  for (std::size_t i = 0; i < experts.size(); ++i) places[experts[i]].push_back(i);
  Values out(experts.size() * rows);
  for (const auto& [expert, slots] : places) {
    Matrix of_expert = matrix;
    of_expert.expert = expert;
    Values inputs;
    for (std::size_t i : slots) {
      const auto from = x.subspan((own_input ? i : i / at(used)) * cols, cols);
      inputs.insert(inputs.end(), from.begin(), from.end());
    }
    const Values products = linear(of_expert, inputs, sum);
    for (std::size_t j = 0; j < slots.size(); ++j)
      std::copy_n(products.begin() + static_cast<std::ptrdiff_t>(j * rows), rows,
                  out.begin() + static_cast<std::ptrdiff_t>(slots[j] * rows));
  }
  return out;
}

}  // namespace moe_diag::host

namespace moe_diag {
namespace {

// As many experts as tokens that choose at random would reach.
Cost cost(const Step& step, const ModelConfig& config, double rows, int) {
  const Weight& w = *step.weights[0];
  const double size = static_cast<double>(w.cols) * static_cast<double>(w.rows);
  const double missed = std::pow(1 - static_cast<double>(config.used) / config.experts, rows);
  return {size * config.experts * (1 - missed), size * rows * config.used};
}

// The lane's own choice may hold ids of no expert. Their slots are 0 with and without the fault, so that the lane keeps
// its values there.
host::Values compute(const StepRows& rows) {
  const host::Values& ids = rows.inputs.in[1];
  const auto exists = [&](double id) { return id >= 0 && id < rows.config.experts; };
  std::vector<std::int32_t> experts;
  for (double id : ids) {
    const std::int32_t own = exists(id) ? static_cast<std::int32_t>(id) : 0;
    experts.push_back(rows.is(Fault::Kind::wrong_expert) ? (own + 1) % rows.config.experts : own);
  }
  host::Values out =
      host::expert_linear(rows.matrix(*rows.step.weights[0]), experts, rows.config.used, rows.operand(), sum_of(rows));
  const std::size_t width = out.size() / experts.size();
  for (std::size_t slot = 0; slot < experts.size(); ++slot)
    if (!exists(ids[slot])) std::fill_n(out.begin() + static_cast<std::ptrdiff_t>(slot * width), width, 0.0);
  return out;
}

}  // namespace

const Operator expert_linear_op{
    .name = "expert_linear",
    .weights = WeightRows::of_experts,
    .squared_error = squared_error_of_product,
    .cost = cost,
    .compute = compute,
};

}  // namespace moe_diag
