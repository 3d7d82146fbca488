// SPDX-License-Identifier: MIT
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/api/backend.hpp"
#include "core/ops/numerics.hpp"
#include "core/ops/program.hpp"

namespace moe_diag {

// A lane that stands for an engine with coarser types than its backend has. What the engine rounds is rounded here,
// around each step: what products read, what goes into a cache, and what a step has written. So it works with any
// backend, whose steps then run one by one where something is rounded.
class RoundedLane final : public Lane {
 public:
  // `config` and `program`, what the lane computes, outlive it. `storage`: of each stage, as storage_of() gives it.
  RoundedLane(std::unique_ptr<Lane> lane, const ModelConfig& config, const Program& program,
              const EngineNumerics& engine, std::vector<DType> storage);

  Abilities abilities() const override { return lane_->abilities(); }
  void begin(const Pass& pass) override;
  void run(std::span<const Step> steps) override;
  // Stages that are stored in a coarser type come in that type.
  Tensor read(Site site, Rows rows) override;
  bool has(Site site, Stretch positions) const override { return lane_->has(site, positions); }
  // Rounded as the stage is stored, and as the cache keeps its values.
  void write(Site site, Rows rows, const Tensor& values) override;
  Tensor read_cache(Cache cache, int layer, Stretch positions) override;
  void write_cache(Cache cache, int layer, Stretch positions, const Tensor& values) override;
  DeviceMemory device_memory() override { return lane_->device_memory(); }

 private:
  bool is_coarse(Stage stage) const;
  bool is_any_coarse() const;
  bool rounds(const Step& step) const;
  bool rounds_cache(const CacheUse& use) const;
  void run_own(std::span<const Step> steps);
  void run_rounded(const Step& step);
  void multiply(const Step& step);
  // An input of a step: its own values, and those that the step reads instead.
  struct Replaced {
    std::size_t input;
    host::Values own, read;
  };
  std::vector<Replaced> cached_inputs(const Step& step);
  void run_on(const Step& step, const std::vector<Replaced>& inputs);
  void store(const Step& step);
  Rows rows_of(Stage stage) const;
  host::Values values_of(Site site, Rows rows);

  const std::unique_ptr<Lane> lane_;
  const ModelConfig& config_;
  const Program& program_;
  const EngineNumerics engine_;
  const Reads* const reads_;          // null: as the backend reads
  const CacheRounding in_caches_;     // of keys and values
  const std::vector<DType> storage_;  // by stage
  Pass pass_;
  std::vector<int> layer_;                      // of each stage: that which was written last
  std::vector<Step> steps_;                     // of the span at hand
  std::vector<std::vector<std::byte>> stored_;  // by stage: what read() gave last
  const bool stores_itself_;                    // the backend rounds what steps have written
  const bool rounds_here_;
};

// The reason why a program cannot be computed so: a row that is no whole number of the blocks that it is rounded in.
// Empty: it can.
std::string obstacle_to_rounding(const EngineNumerics& engine, const Program& program, const ModelConfig& config);

}  // namespace moe_diag
