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

Values windowed_softmax(std::span<const double> x, std::int64_t width, std::int64_t seen, std::int64_t window) {
  expect_multiple("softmax", "values of x", width, size_of(x));
  const std::int64_t first = std::max<std::int64_t>(0, seen - window);
  Values out(x.size());
  for (std::size_t g = 0; g < x.size(); g += at(width)) {
    const Values last = softmax(x.subspan(g + at(first), at(seen - first)), seen - first, seen - first);
    std::copy(last.begin(), last.end(), out.begin() + static_cast<std::ptrdiff_t>(g) + first);
  }
  return out;
}

Values sigmoids(Values x) {
  for (double& value : x) value = 1 / (1 + std::exp(-value));
  return x;
}

}  // namespace moe_diag::host

namespace moe_diag {
namespace {

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
    if (rows.is(Fault::Kind::gating)) return host::sigmoids({x.begin(), x.end()});
    if (rows.is(Fault::Kind::window))
      return host::windowed_softmax(x, width, rows.inputs.positions[r] + 1, rows.fault->keys);
    return host::softmax(x, width, causal ? rows.inputs.positions[r] + 1 : width);
  });
}

}  // namespace

const Operator softmax_op{
    .name = "softmax",
    .params = SoftmaxParams{},
    .depends_on_values = true,
    .squared_error = squared_error,
    .cost = cost_of_weights,
    .compute = compute,
    .add_hypotheses = add_softmax_hypotheses,
};

}  // namespace moe_diag
