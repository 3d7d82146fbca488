// SPDX-License-Identifier: MIT
#include "core/ops/rms_norm.hpp"

#include <cmath>
#include <cstdint>

#include "core/ops/sizes.hpp"

namespace moe_diag::host {

Values rms_norm(std::span<const double> x, std::span<const double> w, const NormOptions& options) {
  expect_multiple("rms_norm", "values of x", size_of(w), size_of(x));
  const std::size_t width = w.size();
  Values out(x.size());
  for (std::size_t g = 0; g < x.size(); g += width) {
    const auto group = x.subspan(g, width);
    const double mean = dot(group, group) / static_cast<double>(width);
    const double factor = options.normalise ? 1 / std::sqrt(mean + options.eps) : 1;
    for (std::size_t i = 0; i < width; ++i) out[g + i] = group[i] * factor * w[i];
  }
  return out;
}

}  // namespace moe_diag::host

namespace moe_diag {
namespace {

double squared_error(const Step& step, const ModelConfig&, const PredictedNumerics& numerics, int) {
  return (3 + 2 + (2 + positive_walk(step.as<RmsNormParams>().width)) / 4) * numerics.unit;
}

host::Values compute(const StepRows& rows) {
  const host::Values weight = host::decode_row(host::Matrix(*rows.step.weights[0]), 0);
  const auto width =
      static_cast<std::size_t>(rows.config.shape_of({rows.step.out[0], rows.step.layer}, 1, rows.inputs.total).row());
  const bool skips = rows.is(Fault::Kind::skip_norm) || rows.is(Fault::Kind::skip_qk_norm);
  const host::NormOptions options{rows.step.as<RmsNormParams>().eps, !skips};
  return rows.by_row([&](std::size_t r) {
    return host::rms_norm(rows.row(0, r).subspan(static_cast<std::size_t>(rows.step.as<RmsNormParams>().offset), width),
                          weight, options);
  });
}

host::Values with_matrix(const StepCase& c, const StepUnit& unit, const host::Matrix& matrix) {
  const host::Values row = host::values_of(c.in[0], unit.row, 1);
  const std::span<const double> x(row.data() + c.step->as<RmsNormParams>().offset, static_cast<std::size_t>(unit.size));
  return host::rms_norm(x, host::decode_row(matrix, 0), {c.step->as<RmsNormParams>().eps, true});
}

void add_hypotheses(const Operands& o, const FailingUnits&, HypothesisList& list) {
  const auto norm = [o](bool normalise, bool weigh) {
    return [o, normalise, weigh](const StepUnit& unit) {
      const host::Values row = o.input(0, unit);
      const std::span<const double> x(row.data() + o.step.as<RmsNormParams>().offset, host::at(unit.size));
      const host::Values w = weigh ? host::decode_row(host::Matrix(*o.step.weights[0]), 0)
                                   : host::Values(host::at(o.step.as<RmsNormParams>().width), 1);
      return host::rms_norm(x, w, {o.step.as<RmsNormParams>().eps, normalise});
    };
  };
  list.add(StepCause::skipped, "not normalised: only multiplied by the weight", norm(false, true));
  list.add(StepCause::skipped, "normalised, but not multiplied by the weight", norm(true, false));
  list.add(StepCause::skipped, "the norm was left out: the input passed through", norm(false, false));
}

// Whether a norm with another eps than the model's gives all these rows, too: it multiplies each by a factor that
// depends on its mean square.
bool may_be_eps(const StepCase& c, const FailingUnits& failing, double factor) {
  constexpr double largest = 0.1, nearest = 1e-3;  // of eps in use; a factor so near to 1 is of no bug but that one
  if (std::fabs(factor - 1) < nearest) return true;
  if (!c.in[0]) return true;
  double eps = -1;
  for (const StepUnit* unit : failing) {
    const std::int64_t input = std::int64_t{unit->row} * c.in[0].shape.row() + c.step->as<RmsNormParams>().offset;
    for (std::int64_t first = 0; first < unit->size; first += unit->run()) {
      double squares = 0;
      for (std::int64_t i = 0; i < unit->run(); ++i) squares += std::pow(value_at(c.in[0], input + first + i), 2);
      squares /= static_cast<double>(unit->run());
      if (eps < 0) eps = (squares + c.step->as<RmsNormParams>().eps) / (factor * factor) - squares;
      if (!(eps >= 0) || eps > largest) return false;
      const double own = std::sqrt((squares + c.step->as<RmsNormParams>().eps) / (squares + eps));
      if (std::fabs(own - factor) > explained_error * unit->expected * std::fabs(factor)) return false;
    }
  }
  return true;
}

}  // namespace

const Operator rms_norm_op{
    .name = "rms_norm",
    .weights = WeightRows::one,
    .params = RmsNormParams{},
    .depends_on_values = true,
    .squared_error = squared_error,
    .cost = cost_of_weights,
    .compute = compute,
    .with_matrix = with_matrix,
    .add_hypotheses = add_hypotheses,
    .may_be_parameter = may_be_eps,
};

}  // namespace moe_diag
