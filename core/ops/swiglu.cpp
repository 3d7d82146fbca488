// SPDX-License-Identifier: MIT
#include "core/ops/swiglu.hpp"

#include <cmath>

#include "core/ops/sizes.hpp"

namespace moe_diag::host {

Values swiglu(std::span<const double> gate, std::span<const double> up) {
  expect("swiglu", "values", size_of(gate), size_of(up));
  Values out(gate.size());
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
  return out;
}

}  // namespace moe_diag::host

namespace moe_diag {
namespace {

host::Values compute(const StepRows& rows) { return host::swiglu(rows.inputs.in[0], rows.inputs.in[1]); }

}  // namespace

const Operator swiglu_op{
    .name = "swiglu",
    .depends_on_values = true,
    .squared_error = squared_error_of<6>,
    .cost = cost_of_weights,
    .compute = compute,
    .add_hypotheses = add_swiglu_hypotheses,
};

}  // namespace moe_diag
