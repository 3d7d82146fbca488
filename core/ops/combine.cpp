// SPDX-License-Identifier: MIT
#include "core/ops/combine.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

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

// The sums in slot order, each partial sum rounded to 16 bits.
template <class Type>
host::Values added_in(const host::Values& x, int slots) {
  const std::size_t width = x.size() / static_cast<std::size_t>(slots);
  host::Values out(width);
  for (std::size_t i = 0; i < x.size(); ++i) out[i % width] = float{Type(out[i % width] + x[i])};
  return out;
}

// Sums that a lane keeps in 16 bits, as it wrote them: where a sum lies within its error of the border between two
// roundings, the lane may have taken the other side. That happens to few.
template <class Type>
host::Values sums_of_lane(const Operands& o, const StepUnit& unit) {
  constexpr std::size_t rare = 32;  // elements for one at a border
  host::Values sums = added_in<Type>(o.input(0, unit), o.config.used);
  std::vector<std::size_t> off;
  const auto lane = [&](std::size_t i) { return value_at(o.c.a, unit.in_a(static_cast<std::int64_t>(i))); };
  for (std::size_t i = 0; i < sums.size(); ++i)
    if (!(std::fabs(lane(i) - sums[i]) <= unit.tolerance(explained_error, std::fabs(sums[i])))) off.push_back(i);
  if (off.size() * rare > sums.size()) return sums;
  for (const std::size_t i : off)
    if (std::fabs(lane(i) - sums[i]) <= 2 * unit.rms * precision_of(dtype_of<Type>()).epsilon()) sums[i] = lane(i);
  return sums;
}

void add_hypotheses(const Operands& o, const FailingUnits&, HypothesisList& list) {
  if (o.config.used == 1) return;  // the sum without its only expert is zero, which has a name
  list.add(StepCause::accumulation, "the sums are kept in BF16, added by slot",
           [o](const StepUnit& unit) { return sums_of_lane<BF16>(o, unit); });
  list.add(StepCause::accumulation, "the sums are kept in F16, added by slot",
           [o](const StepUnit& unit) { return sums_of_lane<F16>(o, unit); });
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
