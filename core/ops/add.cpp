// SPDX-License-Identifier: MIT
#include "core/ops/add.hpp"

#include <fmt/format.h>

#include "core/ops/sizes.hpp"

namespace moe_diag::host {

Values add(std::span<const double> a, std::span<const double> b) {
  expect("add", "values", size_of(a), size_of(b));
  Values out(a.begin(), a.end());
  for (std::size_t i = 0; i < out.size(); ++i) out[i] += b[i];
  return out;
}

}  // namespace moe_diag::host

namespace moe_diag {
namespace {

host::Values compute(const StepRows& rows) { return host::add(rows.inputs.in[0], rows.inputs.in[1]); }

void add_hypotheses(const Operands& o, const FailingUnits&, HypothesisList& list) {
  for (std::size_t i = 0; i < 2; ++i)
    list.add(StepCause::skipped, fmt::format("{} was not added", name_of(o.step.in[1 - i])),
             [o, i](const StepUnit& unit) { return o.input(i, unit); });
}

}  // namespace

const Operator add_op{
    .name = "add",
    .depends_on_values = true,
    .squared_error = squared_error_of<2>,
    .cost = cost_of_weights,
    .compute = compute,
    .add_hypotheses = add_hypotheses,
};

}  // namespace moe_diag
