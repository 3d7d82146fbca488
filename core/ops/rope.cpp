// SPDX-License-Identifier: MIT
#include "core/ops/rope.hpp"

#include <cmath>

#include "core/ops/sizes.hpp"

namespace moe_diag::host {

Values rope(std::span<const double> x, std::int64_t head_dim, std::int64_t position, const RopeOptions& options) {
  expect_multiple("rope", "values of a head", 2, head_dim);
  expect_multiple("rope", "values of x", head_dim, size_of(x));
  const std::size_t h = at(head_dim), rotated = options.columns > 0 ? at(options.columns) : h, half = rotated / 2;
  const bool halves = options.pairs == RopePairs::halves;
  Values out(x.begin(), x.end());
  for (std::size_t i = 0; i < half; ++i) {
    const double turn = std::pow(options.theta, -2.0 * static_cast<double>(i) / static_cast<double>(rotated));
    const double angle = static_cast<double>(position) / options.divisor * turn, c = std::cos(angle),
                 s = std::sin(angle);
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
  host::RopeOptions options{params.theta};
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
