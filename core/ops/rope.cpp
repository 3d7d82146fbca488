// SPDX-License-Identifier: MIT
#include "core/ops/rope.hpp"

#include <cmath>

#include "core/ops/rounding.hpp"
#include "core/ops/sizes.hpp"

namespace moe_diag::host {

namespace {

Turn turn_by(double angle) { return {std::cos(angle), std::sin(angle)}; }
// By an angle in f32, with its table in f32.
Turn turn_in_f32(float angle) {
  const auto [cosine, sine] = turn_by(angle);
  return {static_cast<float>(cosine), static_cast<float>(sine)};
}
Turn in_bf16(Turn turn) {
  const Values rounded = host::rounded(Values{turn.cosine, turn.sine}, Rounding::bf16);
  return {rounded[0], rounded[1]};
}

}  // namespace

std::vector<Turn> turns(std::int64_t columns, double position, double theta, RopeAngles angles) {
  std::vector<Turn> all;
  const auto each = static_cast<float>(std::pow(theta, -2.0 / static_cast<double>(columns)));
  auto product = static_cast<float>(position);
  for (std::int64_t i = 0; i < columns / 2; ++i, product *= each) {
    const double exponent = 2.0 * static_cast<double>(i) / static_cast<double>(columns);
    const float inverse = 1.0F / static_cast<float>(std::pow(theta, double{static_cast<float>(exponent)}));
    const float angle = static_cast<float>(position) * inverse;
    switch (angles) {
      case RopeAngles::exact: all.push_back(turn_by(position * std::pow(theta, -exponent))); break;
      case RopeAngles::f32: all.push_back(turn_in_f32(angle)); break;
      case RopeAngles::f32_bf16: all.push_back(in_bf16(turn_in_f32(angle))); break;
      case RopeAngles::multiplied: all.push_back(turn_in_f32(product)); break;
    }
  }
  return all;
}

Values rope(std::span<const double> x, std::int64_t head_dim, std::int64_t position, const RopeOptions& options) {
  expect_multiple("rope", "values of a head", 2, head_dim);
  expect_multiple("rope", "values of x", head_dim, size_of(x));
  const std::size_t h = at(head_dim), rotated = options.columns > 0 ? at(options.columns) : h, half = rotated / 2;
  const bool halves = options.pairs == RopePairs::halves;
  const std::vector<Turn> by = turns(static_cast<std::int64_t>(rotated),
                                     static_cast<double>(position) / options.divisor, options.theta, options.angles);
  Values out(x.begin(), x.end());
  for (std::size_t i = 0; i < half; ++i) {
    const auto [c, s] = by[i];
    for (std::size_t head = 0; head < x.size(); head += h) {
      const std::size_t a = head + (halves ? i : 2 * i), b = head + (halves ? i + half : 2 * i + 1);
      out[a] = x[a] * c - x[b] * s;
      out[b] = x[b] * c + x[a] * s;
    }
  }
  return out;
}

}  // namespace moe_diag::host

namespace moe_diag {
namespace {

host::RopeOptions options_of(const StepRows& rows) {
  const RopeParams& params = rows.step.as<RopeParams>();
  host::RopeOptions options{.theta = params.theta, .angles = params.angles};
  if (rows.is(Fault::Kind::rope_theta)) options.theta = rows.fault->theta;
  if (rows.is(Fault::Kind::rope_interleaved)) options.pairs = host::RopePairs::neighbours;
  if (rows.is(Fault::Kind::rope_partial)) options.columns = columns_rotated(*rows.fault, params.head_dim);
  if (rows.is(Fault::Kind::rope_scaled)) options.divisor = rows.fault->factor;
  return options;
}

int position_of(const StepRows& rows, std::size_t r) {
  const int own = rows.inputs.positions[r];
  if (rows.is(Fault::Kind::position_restart)) return own % rows.fault->every;
  return rows.is(Fault::Kind::off_by_one_position) ? own + 1 : own;
}

host::Values compute(const StepRows& rows) {
  const host::RopeOptions options = options_of(rows);
  return rows.by_row([&](std::size_t r) {
    const auto width = static_cast<std::size_t>(rows.config.shape_of({rows.step.out[0], rows.step.layer}, 1, 0).row());
    const std::span<const double> heads = rows.row(0, r).subspan(host::at(rows.step.as<RopeParams>().offset), width);
    return host::rope(heads, rows.step.as<RopeParams>().head_dim, position_of(rows, r), options);
  });
}

}  // namespace

const Operator rope_op{
    .name = "rope",
    .params = RopeParams{},
    .squared_error = squared_error_of<4>,
    .cost = cost_of_weights,
    .compute = compute,
    .add_hypotheses = add_rope_hypotheses,
};

}  // namespace moe_diag
