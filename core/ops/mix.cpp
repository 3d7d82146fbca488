// SPDX-License-Identifier: MIT
#include "core/ops/mix.hpp"

#include "core/ops/sizes.hpp"

namespace moe_diag::host {

Values mix(const Attention& a, std::span<const double> probs, std::span<const double> values) {
  check(a, "mix", values);
  expect("mix", "probabilities", a.heads * a.total, size_of(probs));
  Values out(at(a.heads * a.head_dim));
  for (std::int64_t head = 0; head < a.heads; ++head)
    for (std::int64_t s = 0; s < a.seen; ++s) {
      const std::span<const double> value = cached(a, values, s, head);
      for (std::int64_t i = 0; i < a.head_dim; ++i)
        out[at(head * a.head_dim + i)] += probs[at(head * a.total + s)] * value[at(i)];
    }
  return out;
}

}  // namespace moe_diag::host

namespace moe_diag {
namespace {

double squared_error(const Step&, const ModelConfig&, const PredictedNumerics& numerics, int keys) {
  return (2 + keys / 2.0) * numerics.unit;
}

host::Values compute(const StepRows& rows) {
  const host::Values values = cached_as_kept(rows);
  return rows.by_row([&](std::size_t r) { return host::mix(attention_of(rows, r), rows.row(0, r), values); });
}

}  // namespace

const Operator mix_op{
    .name = "mix",
    .params = MixParams{},
    .squared_error = squared_error,
    .cost = cost_of_attention,
    .compute = compute,
    .add_hypotheses = add_attention_hypotheses,
};

}  // namespace moe_diag
