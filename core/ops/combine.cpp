// SPDX-License-Identifier: MIT
#include "core/ops/combine.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "core/ops/sizes.hpp"

namespace moe_diag::host {

Values combine(std::span<const double> x, std::int64_t slots) { return combine(x, Values(at(slots), 1.0)); }

Values combine(std::span<const double> x, std::span<const double> times) {
  expect_multiple("combine", "values of x", size_of(times), size_of(x));
  const std::size_t width = x.size() / times.size();
  Values out(width);
  for (std::size_t i = 0; i < x.size(); ++i)
    if (times[i / width] != 0) out[i % width] += times[i / width] * x[i];
  return out;
}

}  // namespace moe_diag::host

namespace moe_diag {
namespace {

double squared_error(const Step&, const ModelConfig& config, const PredictedNumerics& numerics, int) {
  const double used = config.used;
  return (used > 1 ? 1 + (used + 1) / 2 : 1) * numerics.unit;
}

// The sums in slot order, each partial sum rounded to 16 bits.
template <class Type>
host::Values added_in(std::span<const double> x, int slots) {
  const std::size_t width = x.size() / static_cast<std::size_t>(slots);
  host::Values out(width);
  for (std::size_t i = 0; i < x.size(); ++i) out[i % width] = float{Type(out[i % width] + x[i])};
  return out;
}

host::Values compute(const StepRows& rows) {
  const int used = rows.config.used;
  host::Values times(static_cast<std::size_t>(used), 1.0);
  if (rows.is(Fault::Kind::drop_top_expert)) times[0] = 0;
  if (rows.is(Fault::Kind::partial_sum))
    for (const int slot : rows.inputs.part) times[host::at(slot)] = rows.fault->times;
  return rows.by_row([&](std::size_t r) {
    const std::span<const double> weighted = rows.row(0, r);
    if (!rows.is(Fault::Kind::accumulate)) return host::combine(weighted, times);
    return type_kept(*rows.fault) == BlockType::f16 ? added_in<F16>(weighted, used) : added_in<BF16>(weighted, used);
  });
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

// How often each slot counts in a unit's sum, solved from what the lane wrote: 1 where it is added as it should be.
// Empty: the values tell none, or numbers that are not whole.
host::Values times_added(const Operands& o, const StepUnit& unit) {
  const host::Values x = o.input(0, unit);
  const std::size_t used = host::at(o.config.used), width = x.size() / used;
  std::vector<host::Values> rows(used, host::Values(used + 1));  // normal equations, the right side last
  for (std::size_t s = 0; s < used; ++s) {
    for (std::size_t t = 0; t < used; ++t)
      rows[s][t] = host::dot(std::span(x).subspan(s * width, width), std::span(x).subspan(t * width, width));
    for (std::size_t i = 0; i < width; ++i)
      rows[s][used] += x[s * width + i] * value_at(o.c.a, unit.in_a(static_cast<std::int64_t>(i)));
  }
  for (std::size_t s = 0; s < used; ++s) {  // Gauss and Jordan; the matrix is positive definite
    if (!(rows[s][s] > 0)) return {};
    for (std::size_t t = 0; t < used; ++t) {
      const double factor = t == s ? 0 : rows[t][s] / rows[s][s];
      for (std::size_t i = s; factor != 0 && i <= used; ++i) rows[t][i] -= factor * rows[s][i];
    }
  }
  host::Values times;
  for (std::size_t s = 0; s < used; ++s) times.push_back(std::round(rows[s][used] / rows[s][s]));
  return times;
}

// Experts of some slots that are missing in a row, in another row those of others: as when one rank's are not added; or
// that are added twice. One row of which all count alike is a factor.
void add_partial_sums(const Operands& o, const FailingUnits& failing, HypothesisList& list) {
  for (const double often : {0.0, 2.0}) {
    std::string slots;
    bool fits = true, has_once = false;
    for (const StepUnit* unit : failing) {
      const host::Values times = times_added(o, *unit);
      fits = fits && !times.empty() &&
             std::all_of(times.begin(), times.end(), [&](double t) { return t == 1 || t == often; });
      has_once = has_once || std::find(times.begin(), times.end(), 1.0) != times.end();
      std::string own;
      for (std::size_t s = 0; s < times.size(); ++s)
        if (times[s] != 1) own += fmt::format("{}{}", own.empty() ? "" : ", ", s);
      if (unit == failing[0]) slots = own;
      if (own != slots) slots.clear();
    }
    if (!fits || !has_once) continue;
    list.add(StepCause::partial_sum,
             fmt::format("the experts of {} are {}", slots.empty() ? "other slots in each row" : "slots " + slots,
                         often == 0 ? "missing from the sum" : "added twice"),
             [o](const StepUnit& unit) -> host::Values {
               const host::Values times = times_added(o, unit);
               return times.empty() ? times : host::combine(o.input(0, unit), times);
             });
  }
}

void add_hypotheses(const Operands& o, const FailingUnits& failing, HypothesisList& list) {
  if (o.config.used == 1) return;  // the sum without its only expert is zero, which has a name
  list.add(StepCause::accumulation, "the sums are kept in BF16, added by slot",
           [o](const StepUnit& unit) { return sums_of_lane<BF16>(o, unit); });
  list.add(StepCause::accumulation, "the sums are kept in F16, added by slot",
           [o](const StepUnit& unit) { return sums_of_lane<F16>(o, unit); });
  add_partial_sums(o, failing, list);
  for (int slot = 0; slot < o.config.used; ++slot)
    list.add(StepCause::dropped_expert, fmt::format("the expert of slot {} is not added", slot),
             [o, slot](const StepUnit& unit) {
               host::Values times(host::at(o.config.used), 1.0);
               times[host::at(slot)] = 0;
               return host::combine(o.input(0, unit), times);
             });
}

}  // namespace

double cancellation_of_experts(std::span<const double> slots, std::span<const double> results) {
  double terms = 0, all = 0;
  for (const double x : slots) terms += x * x;
  for (const double y : results) all += y * y;
  return all == 0 ? 1 : std::max(1.0, std::sqrt(terms / all));
}

const Operator combine_op{
    .name = "combine",
    .adds_experts = true,
    .depends_on_values = true,
    .squared_error = squared_error,
    .cost = cost_of_weights,
    .compute = compute,
    .add_hypotheses = add_hypotheses,
};

}  // namespace moe_diag
