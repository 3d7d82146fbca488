// SPDX-License-Identifier: MIT
#include "core/ops/weigh.hpp"

#include <fmt/format.h>

#include "core/ops/sizes.hpp"

namespace moe_diag::host {

Values weigh(std::span<const double> x, std::span<const double> weights) {
  expect_multiple("weigh", "values of x", size_of(weights), size_of(x));
  const std::size_t width = x.size() / weights.size();
  Values out(x.begin(), x.end());
  for (std::size_t i = 0; i < out.size(); ++i) out[i] *= weights[i / width];
  return out;
}

}  // namespace moe_diag::host

namespace moe_diag {
namespace {

host::Values compute(const StepRows& rows) { return host::weigh(rows.inputs.in[0], rows.inputs.in[1]); }

void add_hypotheses(const Operands& o, const FailingUnits&, HypothesisList& list) {
  const auto by = [o](auto factor) {
    return [o, factor](const StepUnit& unit) { return host::weigh(o.input(0, unit), host::Values{factor(unit)}); };
  };
  const int used = o.config.used;
  list.add(StepCause::skipped, "not multiplied by the router's weights", by([](const StepUnit&) { return 1.0; }));
  list.add(StepCause::uniform_weights, fmt::format("all experts weigh 1/{}", used),
           by([used](const StepUnit&) { return 1.0 / used; }));
  for (int shift = 1; shift < used; ++shift)
    list.add(StepCause::permutation, fmt::format("slot j has the weight of slot (j + {}) mod {}", shift, used),
             by([o, shift, used](const StepUnit& unit) {
               return host::values_of(o.c.in[1], unit.row, 1)[host::at((unit.slot + shift) % used)];
             }));
}

}  // namespace

const Operator weigh_op{
    .name = "weigh",
    .depends_on_values = true,
    .squared_error = squared_error_of<3>,
    .cost = cost_of_weights,
    .compute = compute,
    .add_hypotheses = add_hypotheses,
};

}  // namespace moe_diag
