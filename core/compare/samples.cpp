// SPDX-License-Identifier: MIT
#include "core/compare/samples.hpp"

#include <algorithm>

namespace moe_diag {
namespace {

std::span<const std::int32_t> ids_of_row(const Tensor& routing, int row) {
  const std::int64_t used = routing.shape.row();
  return {routing.as<std::int32_t>() + row * used, static_cast<std::size_t>(used)};
}

int slot_of(std::span<const std::int32_t> ids, std::int32_t expert) {
  const auto at = std::find(ids.begin(), ids.end(), expert);
  return at == ids.end() ? -1 : static_cast<int>(at - ids.begin());
}

// [T, k, n] by expert: a sample each; [T, k], the router's weights: one sample of the experts both chose.
RowSamples expert_samples(const Pair& pair, int row) {
  const auto ids_a = ids_of_row(pair.routing_a, row), ids_b = ids_of_row(pair.routing_b, row);
  const std::int64_t used = pair.a.shape[1], width = pair.a.shape.row() / used;
  RowSamples result;
  SampleSegments together{row, -1, {}};
  for (std::size_t slot = 0; slot < ids_a.size(); ++slot) {
    const int other = slot_of(ids_b, ids_a[slot]);
    if (other < 0) {
      const std::int64_t at = (row * used + static_cast<std::int64_t>(slot)) * width;
      result.alone.push_back({row, ids_a[slot], {{at, at, width}}});
      continue;
    }
    const Segment segment{(row * used + static_cast<std::int64_t>(slot)) * width, (row * used + other) * width, width};
    if (pair.site.stage == Stage::moe_router_weights)
      together.segments.push_back(segment);
    else
      result.samples.push_back({row, ids_a[slot], {segment}});
  }
  if (!together.segments.empty()) result.samples.push_back(std::move(together));
  return result;
}

}  // namespace

RowSamples samples_of_row(const Pair& pair, int row) {
  if (is_per_expert(pair.site.stage)) return expert_samples(pair, row);
  const std::int64_t size = pair.a.shape.row();
  SampleSegments sample{row, -1, {}};
  if (pair.site.stage == Stage::attn_scores || pair.site.stage == Stage::attn_softmax) {
    const std::int64_t keys = pair.a.shape[2];
    for (std::int64_t head = 0; head < pair.a.shape[1]; ++head)
      sample.segments.push_back({row * size + head * keys, row * size + head * keys, pair.first_position + row + 1});
  } else {
    sample.segments.push_back({row * size, row * size, size});
  }
  return {{std::move(sample)}, {}};
}

int routing_flips(const Tensor& a, const Tensor& b, int row) {
  const auto ids_b = ids_of_row(b, row);
  int flips = 0;
  for (std::int32_t expert : ids_of_row(a, row)) flips += slot_of(ids_b, expert) < 0;
  return flips;
}

}  // namespace moe_diag
