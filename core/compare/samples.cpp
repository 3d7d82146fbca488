// SPDX-License-Identifier: MIT
#include "core/compare/samples.hpp"

#include "core/compare/chosen.hpp"

namespace moe_diag {
namespace {

// [T, k, n] by expert: a sample each; [T, k], the router's weights: one sample of the experts both chose.
RowSamples expert_samples(const Pair& pair, int row) {
  const ChosenRow chosen_a(pair.routing_a, row, pair.experts), chosen_b(pair.routing_b, row, pair.experts);
  const std::int64_t used = pair.a.shape[1], width = pair.a.shape.row() / used;
  RowSamples result;
  SampleSegments together{row, -1, {}};
  for (std::size_t slot = 0; slot < chosen_a.ids().size(); ++slot) {
    const std::int32_t id = chosen_a.ids()[slot];
    const std::int64_t at = (row * used + static_cast<std::int64_t>(slot)) * width;
    if (!chosen_a.shares(slot, chosen_b)) {
      result.alone.push_back({row, id, {{at, at, width}}});
      continue;
    }
    const Segment segment{at, (row * used + chosen_b.slot_of(id)) * width, width};
    if (is(pair.site.stage, Role::choice_weights))
      together.segments.push_back(segment);
    else
      result.samples.push_back({row, id, {segment}});
  }
  if (!together.segments.empty()) result.samples.push_back(std::move(together));
  return result;
}

}  // namespace

RowSamples samples_of_row(const Pair& pair, int row) {
  if (is_per_expert(pair.site.stage)) return expert_samples(pair, row);
  const std::int64_t size = pair.a.shape.row();
  SampleSegments sample{row, -1, {}};
  if (is(pair.site.stage, Role::key_values)) {
    const std::int64_t keys = pair.a.shape[2];
    for (std::int64_t head = 0; head < pair.a.shape[1]; ++head)
      sample.segments.push_back({row * size + head * keys, row * size + head * keys, pair.first_position + row + 1});
  } else {
    sample.segments.push_back({row * size, row * size, size});
  }
  return {{std::move(sample)}, {}};
}

int routing_flips(const Tensor& a, const Tensor& b, int row, int experts) {
  const ChosenRow chosen_a(a, row, experts), chosen_b(b, row, experts);
  int flips = 0;
  for (std::size_t slot = 0; slot < chosen_a.ids().size(); ++slot) flips += !chosen_a.shares(slot, chosen_b);
  return flips;
}

}  // namespace moe_diag
