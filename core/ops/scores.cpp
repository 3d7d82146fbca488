// SPDX-License-Identifier: MIT
#include "core/ops/scores.hpp"

#include <algorithm>

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

host::Values compute(const StepRows& rows) {
  const host::Values keys = rows.is(Fault::Kind::stale_kv) ? stale_keys(rows) : rows.inputs.in[1];
  return rows.by_row([&](std::size_t r) {
    return host::scores(attention_of(rows, r), rows.row(0, r), keys, rows.step.as<ScoresParams>().scale);
  });
}

}  // namespace

const Operator scores_op{
    .name = "scores",
    .params = ScoresParams{},
    .squared_error = squared_error,
    .cost = cost_of_attention,
    .compute = compute,
    .add_hypotheses = add_attention_hypotheses,
};

}  // namespace moe_diag
