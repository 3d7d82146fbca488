// SPDX-License-Identifier: MIT
#include "core/ops/softmax.hpp"

#include <algorithm>
#include <cmath>

#include "core/ops/sizes.hpp"

namespace moe_diag::host {

Values softmax(std::span<const double> x, std::int64_t width, std::int64_t seen) {
  expect_multiple("softmax", "values of x", width, size_of(x));
  expect_below("softmax", "values seen", width + 1, seen);
  Values out(x.size());
  for (std::size_t g = 0; seen > 0 && g < x.size(); g += at(width)) {
    const auto in = x.subspan(g, at(seen));
    const double highest = *std::max_element(in.begin(), in.end());
    double total = 0;
    for (std::size_t i = 0; i < in.size(); ++i) total += out[g + i] = std::exp(in[i] - highest);
    for (std::size_t i = 0; i < in.size(); ++i) out[g + i] /= total;
  }
  return out;
}

}  // namespace moe_diag::host

namespace moe_diag {
namespace {

// Typical size of the scores and of the router logits that carry the probability: the error of their rounding is that
// of the exponential's exponent.
constexpr double logit_size = 4;

double squared_error(const Step& step, const ModelConfig& config, const PredictedNumerics& numerics, int keys) {
  const bool causal = step.as<SoftmaxParams>().causal;
  const std::int64_t width = causal ? keys : config.shape_of({step.out[0], step.layer}, 1, keys).row();
  return (width > 1 ? square(logit_size) + 3 : 1) * numerics.unit;
}

host::Values compute(const StepRows& rows) {
  const bool causal = rows.step.as<SoftmaxParams>().causal;
  return rows.by_row([&](std::size_t r) {
    const std::span<const double> x = rows.row(0, r);
    const std::int64_t width = causal ? rows.inputs.total : host::size_of(x);
    return host::softmax(x, width, causal ? rows.inputs.positions[r] + 1 : width);
  });
}

void add_hypotheses(const Operands& o, const FailingUnits&, HypothesisList& list) {
  if (!o.step.as<SoftmaxParams>().causal) {
    list.add(StepCause::skipped, "the softmax was left out: the input passed through",
             [o](const StepUnit& unit) { return o.input(0, unit); });
    return;
  }
  const auto seeing = [o](auto seen_of) {
    return [o, seen_of](const StepUnit& unit) -> host::Values {
      const std::int64_t total = o.c.in[0].shape[2], own = o.position(unit) + 1, seen = seen_of(own, total);
      if (seen < 1 || seen > total) return {};
      const host::Values all = host::softmax(o.input(0, unit), total, seen);
      host::Values compared;
      for (std::int64_t head = 0; head < o.c.in[0].shape[1]; ++head)
        compared.insert(compared.end(), all.begin() + head * total, all.begin() + head * total + own);
      return compared;
    };
  };
  list.add(StepCause::skipped, "the mask was left out: later keys count",
           seeing([](std::int64_t, std::int64_t total) { return total; }));
  list.add(StepCause::shifted_position, "the own key is not seen",
           seeing([](std::int64_t own, std::int64_t) { return own - 1; }));
  list.add(StepCause::shifted_position, "the key of the position after is seen",
           seeing([](std::int64_t own, std::int64_t) { return own + 1; }));
}

}  // namespace

const Operator softmax_op{
    .name = "softmax",
    .params = SoftmaxParams{},
    .depends_on_values = true,
    .squared_error = squared_error,
    .cost = cost_of_weights,
    .compute = compute,
    .add_hypotheses = add_hypotheses,
};

}  // namespace moe_diag
