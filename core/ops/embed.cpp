// SPDX-License-Identifier: MIT
#include "core/ops/embed.hpp"

#include "core/ops/sizes.hpp"

namespace moe_diag::host {

Values embed(const Matrix& table, std::span<const std::int32_t> tokens) {
  Values out;
  for (std::int32_t token : tokens) {
    const Values row = decode_row(table, token);
    out.insert(out.end(), row.begin(), row.end());
  }
  return out;
}

}  // namespace moe_diag::host

namespace moe_diag {
namespace {

Cost cost(const Step& step, const ModelConfig&, double rows, int) {
  return {rows * static_cast<double>(step.weights[0]->cols), 0};
}

host::Values compute(const StepRows& rows) {
  host::expect("embed", "tokens", static_cast<std::int64_t>(rows.count()),
               static_cast<std::int64_t>(rows.inputs.tokens.size()));
  return host::embed(rows.matrix(*rows.step.weights[0]), rows.inputs.tokens);
}

host::Values with_matrix(const StepCase& c, const StepUnit& unit, const host::Matrix& matrix) {
  return host::embed(matrix, c.tokens.subspan(static_cast<std::size_t>(unit.row), 1));
}

}  // namespace

const Operator embed_op{
    .name = "embed",
    .weights = WeightRows::of_tokens,
    .squared_error = squared_error_of<1>,
    .cost = cost,
    .compute = compute,
    .with_matrix = with_matrix,
};

}  // namespace moe_diag
