// SPDX-License-Identifier: MIT
#include "core/ops/combine.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/ops/sizes.hpp"

namespace moe_diag::host {

Values combine(std::span<const double> x, std::int64_t slots) {
  expect_multiple("combine", "values of x", slots, size_of(x));
  const std::size_t width = x.size() / at(slots);
  Values out(width);
  for (std::size_t i = 0; i < x.size(); ++i) out[i % width] += x[i];
  return out;
}

}  // namespace moe_diag::host

namespace moe_diag {
namespace {

double squared_error(const Step&, const ModelConfig& config, const PredictedNumerics& numerics, int) {
  const double used = config.used;
  return (used > 1 ? 1 + (used + 1) / 2 : 1) * numerics.unit;
}

host::Values compute(const StepRows& rows) {
  const int used = rows.config.used;
  return rows.by_row([&](std::size_t r) {
    host::Values weighted(rows.row(0, r).begin(), rows.row(0, r).end());
    if (rows.is(Fault::Kind::drop_top_expert))
      std::fill_n(weighted.begin(), weighted.size() / static_cast<std::size_t>(used), 0.0);
    return host::combine(weighted, used);
  });
}

void add_hypotheses(const Operands& o, const FailingUnits&, HypothesisList& list) {
  if (o.config.used == 1) return;  // the sum without its only expert is zero, which has a name
  for (int slot = 0; slot < o.config.used; ++slot)
    list.add(StepCause::dropped_expert, fmt::format("the expert of slot {} is not added", slot),
             [o, slot](const StepUnit& unit) {
               host::Values x = o.input(0, unit);
               const auto width = static_cast<std::ptrdiff_t>(x.size()) / o.config.used;
               std::fill_n(x.begin() + slot * width, width, 0.0);
               return host::combine(x, o.config.used);
             });
}

}  // namespace

const Operator combine_op{
    .name = "combine",
    .depends_on_values = true,
    .squared_error = squared_error,
    .cost = cost_of_weights,
    .compute = compute,
    .add_hypotheses = add_hypotheses,
};

}  // namespace moe_diag
