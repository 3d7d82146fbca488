// SPDX-License-Identifier: MIT
#include "core/ops/rms_norm.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numeric>

#include "core/ops/sizes.hpp"

namespace moe_diag::host {

Values rms_norm(std::span<const double> x, std::span<const double> w, const NormOptions& options) {
  expect_multiple("rms_norm", "values of x", size_of(w), size_of(x));
  const std::size_t width = options.whole_row ? x.size() : w.size();
  Values out(x.size());
  for (std::size_t g = 0; g < x.size(); g += width) {
    Values group(x.begin() + static_cast<std::ptrdiff_t>(g), x.begin() + static_cast<std::ptrdiff_t>(g + width));
    const double middle =
        options.centred ? std::accumulate(group.begin(), group.end(), 0.0) / static_cast<double>(width) : 0;
    for (double& value : group) value -= middle;
    const double mean = dot(group, group) / static_cast<double>(width);
    const double factor = options.normalise ? 1 / std::sqrt(mean + options.eps) : 1;
    for (std::size_t i = 0; i < width; ++i)
      out[g + i] = group[i] * factor * (w[(g + i) % w.size()] + (options.plus_one ? 1 : 0));
  }
  return out;
}

}  // namespace moe_diag::host

namespace moe_diag {
namespace {

double squared_error(const Step& step, const ModelConfig&, const PredictedNumerics& numerics, int) {
  return (3 + 2 + (2 + positive_walk(step.as<RmsNormParams>().width)) / 4) * numerics.unit;
}

host::NormOptions options_of(const StepRows& rows) {
  host::NormOptions options{rows.step.as<RmsNormParams>().eps};
  options.normalise = !rows.is(Fault::Kind::skip_norm) && !rows.is(Fault::Kind::skip_qk_norm);
  if (rows.is(Fault::Kind::eps)) options.eps = rows.fault->eps;
  if (rows.is(Fault::Kind::norm)) {
    const Fault::Form form = form_of(*rows.fault);
    options.plus_one = form == Fault::Form::plus_one;
    options.centred = form == Fault::Form::layer_norm;
    options.whole_row = form == Fault::Form::whole_row;
  }
  return options;
}

host::Values compute(const StepRows& rows) {
  const host::Values weight = host::decode_row(host::Matrix(*rows.step.weights[0]), 0);
  const auto width =
      static_cast<std::size_t>(rows.config.shape_of({rows.step.out[0], rows.step.layer}, 1, rows.inputs.total).row());
  const host::NormOptions options = options_of(rows);
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
    .add_hypotheses = add_norm_hypotheses,
    .may_be_parameter = may_be_eps,
};

}  // namespace moe_diag
