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

std::vector<float> inverse_frequencies(std::int64_t columns, double theta) {
  std::vector<float> inverses;
  for (std::int64_t i = 0; i < columns / 2; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(columns);
    inverses.push_back(1.0F / static_cast<float>(std::pow(theta, double{exponent})));
  }
  return inverses;
}

std::vector<Turn> turns_in_f32(std::span<const float> inverse_frequencies, double position, bool with_bf16_tables) {
  std::vector<Turn> all;
  for (const float inverse : inverse_frequencies) {
    const Turn turn = turn_in_f32(static_cast<float>(position) * inverse);
    all.push_back(with_bf16_tables ? in_bf16(turn) : turn);
  }
  return all;
}

std::vector<Turn> turns(std::int64_t columns, double position, double theta, RopeAngles angles) {
  if (angles == RopeAngles::f32 || angles == RopeAngles::f32_bf16)
    return turns_in_f32(inverse_frequencies(columns, theta), position, angles == RopeAngles::f32_bf16);
  std::vector<Turn> all;
  const double h = static_cast<double>(columns);
  const auto each = static_cast<float>(std::pow(theta, -2 / h));
  auto product = static_cast<float>(position);
  for (std::int64_t i = 0; i < columns / 2; ++i, product *= each)
    all.push_back(angles == RopeAngles::multiplied
                      ? turn_in_f32(product)
                      : turn_by(position * std::pow(theta, -2.0 * static_cast<double>(i) / h)));
  return all;
}

Values turned(std::span<const double> x, std::int64_t head_dim, std::span<const Turn> turns, RopePairs pairs) {
  expect_multiple("rope", "values of a head", 2, head_dim);
  expect_multiple("rope", "values of x", head_dim, size_of(x));
  const bool halves = pairs == RopePairs::halves;
  Values out(x.begin(), x.end());
  for (std::size_t i = 0; i < turns.size(); ++i) {
    const auto [c, s] = turns[i];
    for (std::size_t head = 0; head < x.size(); head += at(head_dim)) {
      const std::size_t a = head + (halves ? i : 2 * i), b = head + (halves ? i + turns.size() : 2 * i + 1);
      out[a] = x[a] * c - x[b] * s;
      out[b] = x[b] * c + x[a] * s;
    }
  }
  return out;
}

Values rope(std::span<const double> x, std::int64_t head_dim, std::int64_t position, const RopeOptions& options) {
  const std::int64_t rotated = options.columns > 0 ? options.columns : head_dim;
  return turned(x, head_dim,
                turns(rotated, static_cast<double>(position) / options.divisor, options.theta, options.angles),
                options.pairs);
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
