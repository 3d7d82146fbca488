// SPDX-License-Identifier: MIT
#include "core/ops/rope.hpp"

#include <cmath>

#include "core/ops/sizes.hpp"

namespace moe_diag::host {

Values rope(std::span<const double> x, std::int64_t head_dim, std::int64_t position, const RopeOptions& options) {
  expect_multiple("rope", "values of a head", 2, head_dim);
  expect_multiple("rope", "values of x", head_dim, size_of(x));
  const std::size_t h = at(head_dim), half = h / 2;
  const bool halves = options.pairs == RopePairs::halves;
  Values out(x.size());
  for (std::size_t i = 0; i < half; ++i) {
    const double turn = std::pow(options.theta, -2.0 * static_cast<double>(i) / static_cast<double>(h));
    const double angle = static_cast<double>(position) * turn, c = std::cos(angle), s = std::sin(angle);
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

host::Values compute(const StepRows& rows) {
  host::RopeOptions options{rows.step.as<RopeParams>().theta};
  if (rows.is(Fault::Kind::rope_theta)) options.theta = rows.fault->theta;
  if (rows.is(Fault::Kind::rope_interleaved)) options.pairs = host::RopePairs::neighbours;
  const int later = rows.is(Fault::Kind::off_by_one_position) ? 1 : 0;
  return rows.by_row([&](std::size_t r) {
    const auto width = static_cast<std::size_t>(rows.config.shape_of({rows.step.out[0], rows.step.layer}, 1, 0).row());
    const std::span<const double> heads = rows.row(0, r).subspan(host::at(rows.step.as<RopeParams>().offset), width);
    return host::rope(heads, rows.step.as<RopeParams>().head_dim, rows.inputs.positions[r] + later, options);
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
