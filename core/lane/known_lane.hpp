// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "core/api/backend.hpp"
#include "core/ops/program.hpp"
#include "core/recording/recording.hpp"

namespace moe_diag {

// A lane that is fed by a recording. A step whose inputs are neither recorded nor computed here is left out, and the
// lane has none of its outputs: without tokens there is no embedding, and without the keys of all positions no
// attention.
class KnownLane final : public Lane {
 public:
  // `recording` feeds the lane; `requests`: the request of each prompt in it. Both, and `program`, what the lane
  // computes, outlive it.
  KnownLane(std::unique_ptr<Lane> lane, const Program& program, const ModelConfig& config, const Recording& recording,
            std::vector<int> requests)
      : lane_(std::move(lane)),
        program_(program),
        config_(config),
        recording_(recording),
        requests_(std::move(requests)),
        known_(config.stages.size()) {}

  Abilities abilities() const override { return lane_->abilities(); }
  std::size_t supports(std::span<const Step> steps) const override { return lane_->supports(steps); }
  void begin(const Pass& pass) override;
  void run(std::span<const Step> steps) override;
  Tensor read(Site site, Rows rows) override { return lane_->read(site, rows); }
  bool has(Site site, Stretch positions) const override {
    return known_[site.stage.index()] && lane_->has(site, positions);
  }
  // Experts that the recording chose get their weights from the lane's own probabilities, in case none are recorded.
  void write(Site site, Rows rows, const Tensor& values) override;
  Tensor read_cache(Cache cache, int layer, Stretch positions) override;
  void write_cache(Cache cache, int layer, Stretch positions, const Tensor& values) override;
  DeviceMemory device_memory() override { return lane_->device_memory(); }

 private:
  void take_cached();
  bool can_run(const Step& step);
  void weigh_choice(Site site, Rows rows, const Tensor& experts);
  int& known_positions(Cache cache, int layer) { return positions_[{cache.index(), layer}]; }

  const std::unique_ptr<Lane> lane_;
  const Program& program_;
  const ModelConfig& config_;
  const Recording& recording_;
  const std::vector<int> requests_;
  std::vector<bool> known_;                               // by stage: its slot holds what was computed or handed over
  std::map<std::pair<std::size_t, int>, int> positions_;  // of caches: as many from the first on are known
  Pass pass_;
};

}  // namespace moe_diag
