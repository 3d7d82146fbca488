// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <vector>

#include "core/api/backend.hpp"
#include "core/contract/contract.hpp"
#include "core/recording/recording.hpp"

namespace moe_diag {

// A lane that another engine computed: it computes nothing, and has what was recorded.
class ReplayLane final : public Lane {
 public:
  // All outlive it. `requests`: that of each prompt, by Pass::sequence; -1: the recording has none of it.
  ReplayLane(const Recording& recording, const ModelConfig& config, std::vector<int> requests)
      : recording_(recording),
        config_(config),
        requests_(std::move(requests)),
        layer_(config.stages.size(), -1),
        written_(config.stages.size()),
        read_(config.stages.size()) {}

  Abilities abilities() const override { return {.recomputes = false, .shows_caches = false}; }
  void begin(const Pass& pass) override;
  void run(std::span<const Step> steps) override;
  // Stages with a value for each key have as many as the whole sequence has keys.
  Tensor read(Site site, Rows rows) override;
  bool has(Site site, Stretch positions) const override;
  // A fault that a control plants. It stays until the next step is run.
  void write(Site site, Rows rows, const Tensor& values) override;
  Tensor read_cache(Cache, int, Stretch) override { return {}; }
  void write_cache(Cache, int, Stretch, const Tensor&) override {}

  static Description description(const LaneSpec& lane, const Recording& recording, const ModelConfig& config);

 private:
  struct Written {
    Site site;
    Rows rows;
    DType dtype = DType::f32;
    Shape shape;
    std::vector<std::byte> bytes;
  };

  int request() const;
  // The layer whose values the stage now holds: a step may read those of the layer before its own.
  Site in_slot(Site site) const { return {site.stage, layer_[site.stage.index()]}; }

  const Recording& recording_;
  const ModelConfig& config_;
  const std::vector<int> requests_;
  Pass pass_;
  std::vector<int> layer_;                    // by stage: that of the last step that was run
  std::vector<Written> written_;              // by stage
  std::vector<std::vector<std::byte>> read_;  // by stage: what read() gave last
};

}  // namespace moe_diag
