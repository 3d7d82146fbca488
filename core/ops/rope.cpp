// SPDX-License-Identifier: MIT
#include "core/ops/rope.hpp"

#include <fmt/format.h>

#include <array>
#include <cmath>
#include <optional>
#include <vector>

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

constexpr std::array well_known_thetas{1e4, 5e5, 1e6, 1e7};
constexpr double pi = 3.14159265358979323846;

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

// The heads that a unit is made of: they may stand among others.
host::Values heads_of(const Operands& o, const StepUnit& unit) {
  const host::Values row = o.input(0, unit);
  const auto from = row.begin() + o.step.as<RopeParams>().offset;
  return {from, from + unit.size};
}

// To three digits: bases are round numbers, and a fit is not exact.
double to_three_digits(double x) {
  const double unit = std::pow(10, std::floor(std::log10(x)) - 2);
  return std::round(x / unit) * unit;
}

// The angle by which pair i of all heads of a row turned, in -pi..pi.
double angle_of(const Operands& o, const StepUnit& unit, const host::Values& x, std::int64_t i) {
  const std::int64_t h = o.step.as<RopeParams>().head_dim;
  double along = 0, across = 0;
  for (std::int64_t head = 0; head < unit.size; head += h) {
    const double re = x[host::at(head + i)], im = x[host::at(head + i + h / 2)];
    const double turned_re = value_at(o.c.a, unit.in_a(head + i));
    const double turned_im = value_at(o.c.a, unit.in_a(head + i + h / 2));
    along += re * turned_re + im * turned_im;
    across += re * turned_im - im * turned_re;
  }
  return std::atan2(across, along);
}

// Whether another theta turns each pair that the model's own turns. Where it does not, a rotation that leaves such
// pairs out looks the same: a partial one, or one with its angles scaled.
bool turns_the_same_pairs(const Operands& o, const FailingUnits& failing, double theta) {
  constexpr double seen = 1e-5;  // radians, beyond the error that is explained in f32
  const double h = o.step.as<RopeParams>().head_dim, own = o.step.as<RopeParams>().theta;
  double farthest = 0;
  for (const StepUnit* unit : failing) farthest = std::max(farthest, static_cast<double>(o.position(*unit)));
  const auto turned = [&](double base, double pair) { return farthest * std::pow(base, -2 * pair / h) > seen; };
  for (double pair = 1; pair < h / 2; ++pair)
    if (turned(own, pair) && !turned(theta, pair)) return false;
  return true;
}

// From the pair that turned farthest while surely less than half a circle, in the first row that fails. One pair alone
// always fits some theta.
std::optional<double> fitted_theta(const Operands& o, const StepUnit& unit) {
  constexpr double least_theta = 100;
  constexpr std::int64_t least_pairs = 3;  // the first of them turns by the position, whatever theta is
  const std::int64_t pairs = o.step.as<RopeParams>().head_dim / 2;
  const double h = static_cast<double>(2 * pairs);
  if (pairs < least_pairs) return std::nullopt;
  const auto p = static_cast<double>(o.position(unit));
  const host::Values x = heads_of(o, unit);
  for (std::int64_t i = 1; p > 0 && i < pairs; ++i) {
    const auto pair = static_cast<double>(i);
    if (p * std::pow(least_theta, -2 * pair / h) >= pi) continue;
    const double theta = std::pow(angle_of(o, unit, x, i) / p, -h / (2 * pair));
    if (std::isfinite(theta) && theta >= least_theta) return to_three_digits(theta);
    return std::nullopt;
  }
  return std::nullopt;
}

void add_hypotheses(const Operands& o, const FailingUnits& failing, HypothesisList& list) {
  const auto rotated = [o](std::int64_t shift, host::RopeOptions options) {
    return [o, shift, options](const StepUnit& unit) {
      return host::rope(heads_of(o, unit), o.step.as<RopeParams>().head_dim, o.position(unit) + shift, options);
    };
  };
  const double theta = o.step.as<RopeParams>().theta;
  const int first = o.c.first_position;
  // The one row of a pass that starts again turns by nothing, as one that is not rotated does.
  if (first > 0 && o.c.a.shape[0] == 1)
    list.add(StepCause::shifted_position, "rotated as at position 0: not at all, or the positions start again",
             [o](const StepUnit& unit) { return heads_of(o, unit); });
  else
    list.add(StepCause::skipped, "not rotated", [o](const StepUnit& unit) { return heads_of(o, unit); });
  if (first > 1 && o.c.a.shape[0] > 1)
    list.add(StepCause::shifted_position, "the positions start again at 0 with the chunk", rotated(-first, {theta}));
  list.add(StepCause::permutation, "rotates pairs (2i, 2i + 1) instead of (i, i + h/2)",
           rotated(0, {theta, host::RopePairs::neighbours}));
  list.add(StepCause::shifted_position, "rotated by the angle of the position before", rotated(-1, {theta}));
  list.add(StepCause::shifted_position, "rotated by the angle of the position after", rotated(1, {theta}));
  std::vector<double> thetas(well_known_thetas.begin(), well_known_thetas.end());
  if (const auto fitted = fitted_theta(o, *failing[0])) thetas.push_back(*fitted);
  for (double other : thetas)
    if (other != theta && turns_the_same_pairs(o, failing, other))
      list.add(StepCause::rope_theta, fmt::format("rotated with theta {:.6g} instead of {:.6g}", other, theta),
               rotated(0, {other}));
}

}  // namespace

const Operator rope_op{
    .name = "rope",
    .params = RopeParams{},
    .squared_error = squared_error_of<4>,
    .cost = cost_of_weights,
    .compute = compute,
    .add_hypotheses = add_hypotheses,
};

}  // namespace moe_diag
