// SPDX-License-Identifier: MIT
#include "core/ops/scores.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "core/ops/sizes.hpp"

namespace moe_diag::host {

Values scores(const Attention& a, std::span<const double> q, std::span<const double> keys, double scale) {
  check(a, "scores", keys);
  expect("scores", "values of q", a.heads * a.head_dim, size_of(q));
  Values out(at(a.heads * a.total));
  for (std::int64_t head = 0; head < a.heads; ++head)
    for (std::int64_t s = 0; s < a.seen; ++s)
      out[at(head * a.total + s)] =
          dot(q.subspan(at(head * a.head_dim), at(a.head_dim)), cached(a, keys, s, head)) * scale;
  return out;
}

}  // namespace moe_diag::host

namespace moe_diag {
namespace {

double squared_error(const Step& step, const ModelConfig&, const PredictedNumerics& numerics, int) {
  return (4 + walk(step.as<ScoresParams>().sizes.head_dim)) * numerics.unit;
}

// At the fault's positions the key of the one before.
host::Values stale_keys(const StepRows& rows) {
  const host::Values& keys = rows.inputs.in[1];
  const auto width = static_cast<std::size_t>(rows.config.cache_width(rows.step.caches[0].cache, rows.step.layer));
  host::Values stale = keys;
  for (int position : rows.inputs.stale) {
    const std::size_t at = static_cast<std::size_t>(position) * width;
    if (position > 0 && at < keys.size()) std::copy_n(keys.data() + (at - width), width, stale.data() + at);
  }
  return stale;
}

double scale_of(const StepRows& rows) {
  const double own = rows.step.as<ScoresParams>().scale;
  return rows.is(Fault::Kind::softmax_scale) ? std::pow(own, rows.fault->times) : own;
}

host::Values compute(const StepRows& rows) {
  const host::Values keys = rows.is(Fault::Kind::stale_kv) ? stale_keys(rows) : cached_as_kept(rows);
  return rows.by_row(
      [&](std::size_t r) { return host::scores(attention_of(rows, r), rows.row(0, r), keys, scale_of(rows)); });
}

// The scale is 1/sqrt(h) in nearly all models.
std::string part_of_factor(const Step& step, double factor, double relative_error) {
  const auto [sizes, scale] = step.as<ScoresParams>();
  const auto is = [&](double other) { return std::fabs(factor / other - 1) <= relative_error; };
  const double root = std::sqrt(static_cast<double>(sizes.head_dim));
  const std::string name = std::fabs(scale * root - 1) < 1e-6 ? fmt::format("1/sqrt({})", sizes.head_dim)
                                                              : fmt::format("the scale {:.6g}", scale);
  if (is(1 / scale)) return name + " was left out";
  return is(scale) ? name + " was applied twice" : "";
}

}  // namespace

const Operator scores_op{
    .name = "scores",
    .params = ScoresParams{},
    .squared_error = squared_error,
    .cost = cost_of_attention,
    .compute = compute,
    .add_hypotheses = add_attention_hypotheses,
    .part_of_factor = part_of_factor,
};

}  // namespace moe_diag
