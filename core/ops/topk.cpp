// SPDX-License-Identifier: MIT
#include "core/ops/topk.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "core/ops/sizes.hpp"
#include "core/ops/variant.hpp"

namespace moe_diag::host {

Chosen topk(std::span<const double> probs, std::int64_t used, bool renormalised) {
  expect_below("topk", "experts used", size_of(probs) + 1, used);
  std::vector<std::int32_t> ids(probs.size());
  std::iota(ids.begin(), ids.end(), 0);
  // NaN orders last, by id, so that the order is a strict one whatever the values.
  const auto key = [&](std::int32_t id) { return std::isnan(probs[at(id)]) ? -INFINITY : probs[at(id)]; };
  std::stable_sort(ids.begin(), ids.end(), [&](std::int32_t a, std::int32_t b) { return key(a) > key(b); });
  ids.resize(at(used));
  Chosen chosen{std::move(ids), {}};
  double total = renormalised ? 0 : 1;
  for (std::int32_t id : chosen.experts) total += renormalised ? probs[at(id)] : 0;
  for (std::int32_t id : chosen.experts) chosen.weights.push_back(probs[at(id)] / total);
  return chosen;
}

constexpr double least_denominator = 6.103515625e-5;  // where it is clamped

Values weighed(const Values& chosen, Weighing weighing, Denominator denominator) {
  if (weighing == Weighing::as_they_are) return chosen;
  Values weights = chosen;
  double total = 0;
  for (double& p : weights) total += p = weighing == Weighing::softmax ? std::exp(p) : p;
  if (weighing == Weighing::shares && denominator == Denominator::sum_plus_1e20) total += 1e-20;
  if (weighing == Weighing::shares && denominator == Denominator::clamped) total = std::max(total, least_denominator);
  for (double& p : weights) p /= total;
  return weights;
}

}  // namespace moe_diag::host

namespace moe_diag {
namespace {

double squared_error(const Step& step, const ModelConfig& config, const PredictedNumerics& numerics, int) {
  if (!step.as<TopkParams>().renormalised) return numerics.unit;
  const double used = config.used;
  return (used > 1 ? 2 + (used - 1) / 2 : 1) * numerics.unit;
}

host::Weighing weighing_of(const StepRows& rows) {
  const bool own = rows.step.as<TopkParams>().renormalised;
  if (rows.is(Fault::Kind::gating)) return host::Weighing::softmax;
  return own != rows.is(Fault::Kind::renormalisation) ? host::Weighing::shares : host::Weighing::as_they_are;
}

// The ids, or the weights of the experts chosen.
host::Values compute(const StepRows& rows) {
  return rows.by_row([&](std::size_t r) {
    const host::Chosen chosen = host::topk(rows.row(0, r), rows.config.used, false);
    return rows.output == 0 ? host::Values(chosen.experts.begin(), chosen.experts.end())
                            : host::weighed(chosen.weights, weighing_of(rows), rows.step.as<TopkParams>().denominator);
  });
}

// The weights of all slots, made from the probabilities of the experts chosen.
using Weights = std::function<host::Values(const host::Values& chosen)>;

double sum(const host::Values& chosen) {
  double total = 0;
  for (double p : chosen) total += p;
  return total;
}

void add_hypotheses(const Operands& o, const FailingUnits& failing, HypothesisList& list) {
  const auto shared = [o](Weights weights_of) {
    return [o, weights_of](const StepUnit& unit) {
      const auto* ids = o.c.routing_a.as<std::int32_t>() + std::int64_t{unit.row} * o.config.used;
      const host::Values probs = o.input(0, unit);
      host::Values chosen, out;
      for (int slot = 0; slot < o.config.used; ++slot)
        chosen.push_back(ids[slot] >= 0 && ids[slot] < o.config.experts ? probs[host::at(ids[slot])] : NAN);
      const host::Values weights = weights_of(chosen);
      for (const Segment& s : unit.segments) {
        out.push_back(weights[host::at(s.a % o.config.used)]);
        if (out.back() == 0 && value_at(o.c.a, s.a) != 0)
          return host::Values{};  // an expert left out weighs nothing at all
      }
      return out;
    };
  };
  using host::Weighing;
  const auto weighing = [](Weighing how) {
    return [how](const host::Values& chosen) { return host::weighed(chosen, how); };
  };
  const Weighing own = o.step.as<TopkParams>().renormalised ? Weighing::shares : Weighing::as_they_are;
  if (own == Weighing::shares)
    list.add(StepCause::skipped, "the weights are not divided by their sum", shared(weighing(Weighing::as_they_are)));
  else
    list.add(StepCause::function, "the weights are divided by their sum, which the model's are not",
             shared(weighing(Weighing::shares)));
  for (const Denominator other : {Denominator::sum, Denominator::clamped, Denominator::sum_plus_1e20})
    if (own == Weighing::shares)
      list.add(StepCause::variant, text_of(other),
               shared([other](const host::Values& chosen) { return host::weighed(chosen, Weighing::shares, other); }));
  list.add(StepCause::function, "the softmax of the probabilities of the experts chosen, instead of the probabilities",
           shared(weighing(Weighing::softmax)));
  list.add(StepCause::uniform_weights, fmt::format("all experts weigh 1/{}", o.config.used),
           shared([](const host::Values& chosen) {
             return host::Values(chosen.size(), 1.0 / static_cast<double>(chosen.size()));
           }));
  if (o.config.used == 1) return;
  const auto without_first = [](host::Values weights, double divisor) {
    for (double& w : weights) w /= divisor;
    weights[0] = 0;
    return weights;
  };
  list.add(StepCause::dropped_expert, "the best expert weighs nothing", shared([=](const host::Values& chosen) {
             return without_first(chosen, own == Weighing::shares ? sum(chosen) : 1);
           }));
  if (own == Weighing::shares)
    list.add(StepCause::dropped_expert, "the best expert weighs nothing, the others share its weight",
             shared([=](const host::Values& chosen) { return without_first(chosen, sum(chosen) - chosen[0]); }));
  const auto without_best = [&](const StepUnit* unit) { return chose_without_best(o.c, o.config, unit->row); };
  if (std::all_of(failing.begin(), failing.end(), without_best))
    list.add(StepCause::dropped_expert, "the best expert was passed over, the next ones chosen", shared(weighing(own)));
}

}  // namespace

host::Values weights_of_choice(const Step& step, std::span<const double> probs, std::span<const std::int32_t> experts) {
  host::Values chosen;
  for (const std::int32_t id : experts)
    chosen.push_back(id >= 0 && id < host::size_of(probs) ? probs[host::at(id)] : NAN);
  const TopkParams& params = step.as<TopkParams>();
  return host::weighed(chosen, params.renormalised ? host::Weighing::shares : host::Weighing::as_they_are,
                       params.denominator);
}

bool chose_without_best(const StepCase& c, const ModelConfig& config, int row) {
  if (!c.in[0] || config.used + 1 > config.experts) return false;
  const host::Chosen best = host::topk(host::values_of(c.in[0], row, 1), config.used + 1);
  const Tensor& routing = payload_of(c.stage) == Payload::indices ? c.a : c.routing_a;
  const auto* ids = routing.as<std::int32_t>() + std::int64_t{row} * config.used;
  return std::is_permutation(ids, ids + config.used, best.experts.begin() + 1);
}

const Operator topk_op{
    .name = "topk",
    .params = TopkParams{},
    .chooses_experts = true,
    .squared_error = squared_error,
    .cost = cost_of_weights,
    .compute = compute,
    .add_hypotheses = add_hypotheses,
};

}  // namespace moe_diag
