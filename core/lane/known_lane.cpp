// SPDX-License-Identifier: MIT
#include "core/lane/known_lane.hpp"

#include <algorithm>

#include "core/ops/operator.hpp"
#include "core/ops/topk.hpp"
#include "core/ops/values.hpp"

namespace moe_diag {

void KnownLane::begin(const Pass& pass) {
  const bool is_new = pass.first == 0 || pass.sequence != pass_.sequence || positions_.empty();
  if (is_new) positions_.clear();
  pass_ = pass;
  std::fill(known_.begin(), known_.end(), false);
  lane_->begin(pass);
  if (is_new) take_cached();
}

// Keys and values of positions before the recording.
void KnownLane::take_cached() {
  const auto sequence = static_cast<std::size_t>(pass_.sequence);
  if (pass_.sequence < 0 || sequence >= requests_.size() || requests_[sequence] < 0) return;
  for (int layer = 0; layer < config_.layers; ++layer)
    for (std::size_t c = 0; c < config_.caches.size(); ++c) {
      const Cache cache = config_.caches[c];
      if (const Tensor rows = recording_.cached(requests_[sequence], cache, layer))
        write_cache(cache, layer, {0, static_cast<int>(rows.shape[0])}, rows);
    }
}

// Whether all that the step reads is known. Rows of an input that go into a cache are then known there, too.
bool KnownLane::can_run(const Step& step) {
  if (operator_of(step).weights == WeightRows::of_tokens && pass_.tokens.empty()) return false;
  if (!std::all_of(step.in.begin(), step.in.end(), [&](Stage stage) { return known_[stage.index()]; })) return false;
  bool all = true;
  for (const CacheUse& use : step.caches) {
    int& known = known_positions(use.cache, step.layer);
    all = all && known >= pass_.first;
    if (known >= pass_.first) known = pass_.first + pass_.rows();
  }
  return all;
}

void KnownLane::run(std::span<const Step> steps) {
  std::size_t first = 0;
  for (std::size_t i = 0; i <= steps.size(); ++i) {
    const bool runs = i < steps.size() && can_run(steps[i]);
    if (i < steps.size())
      for (const Stage stage : steps[i].out) known_[stage.index()] = runs;
    if (runs) continue;
    if (i > first) lane_->run(steps.subspan(first, i - first));
    first = i + 1;
  }
}

void KnownLane::write(Site site, Rows rows, const Tensor& values) {
  known_[site.stage.index()] = true;
  lane_->write(site, rows, values);
  if (is(site.stage, Role::choice)) weigh_choice(site, rows, values);
}

void KnownLane::weigh_choice(Site site, Rows rows, const Tensor& experts) {
  const auto step = std::find_if(program_.begin(), program_.end(), [&](const Step& s) {
    return s.layer == site.layer && std::find(s.out.begin(), s.out.end(), site.stage) != s.out.end();
  });
  const Stage weights = site.stage.sibling(Role::choice_weights);
  if (step == program_.end() || !weights || !known_[step->in[0].index()]) return;
  const Tensor probs = lane_->read({step->in[0], site.layer}, rows);
  if (!probs) return;
  host::Values all;
  const std::int64_t used = experts.shape.row();
  for (int r = 0; r < rows.count; ++r) {
    const host::Values row = weights_of_choice(*step, host::values_of(probs, r, 1),
                                               {experts.as<std::int32_t>() + r * used, static_cast<std::size_t>(used)});
    all.insert(all.end(), row.begin(), row.end());
  }
  known_[weights.index()] = true;
  lane_->write({weights, site.layer}, rows, {all.data(), DType::f64, Shape{rows.count, used}});
}

Tensor KnownLane::read_cache(Cache cache, int layer, Stretch positions) {
  return known_positions(cache, layer) >= positions.end() ? lane_->read_cache(cache, layer, positions) : Tensor();
}

void KnownLane::write_cache(Cache cache, int layer, Stretch positions, const Tensor& values) {
  int& known = known_positions(cache, layer);
  if (known >= positions.first) known = std::max(known, positions.end());
  lane_->write_cache(cache, layer, positions, values);
}

}  // namespace moe_diag
