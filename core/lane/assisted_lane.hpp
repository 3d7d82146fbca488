// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/api/backend.hpp"
#include "core/ops/operator.hpp"
#include "core/ops/program.hpp"

namespace moe_diag {

// A lane whose backend computes some steps only: the plain operators compute the others, in double on the host. Stages
// and caches stay with the backend's lane.
class AssistedLane final : public Lane {
 public:
  using Operators = const Operator& (*)(Op);

  // `config` and `program`, which the lane computes, outlive it.
  AssistedLane(std::unique_ptr<Lane> lane, const ModelConfig& config, const Program& program,
               Operators operators = operator_of);

  Abilities abilities() const override { return lane_->abilities(); }
  void begin(const Pass& pass) override;
  void run(std::span<const Step> steps) override;
  Tensor read(Site site, Rows rows) override { return lane_->read(site, rows); }
  bool has(Site site, Stretch positions) const override { return lane_->has(site, positions); }
  void write(Site site, Rows rows, const Tensor& values) override;
  Tensor read_cache(Cache cache, int layer, Stretch positions) override;
  void write_cache(Cache cache, int layer, Stretch positions, const Tensor& values) override;
  DeviceMemory device_memory() override { return lane_->device_memory(); }

 private:
  void run_own(std::span<const Step> steps);
  void run_plain(const Step& step);
  host::Values read_input(const Step& step, std::size_t input, Rows rows);
  host::Values read_cached(const Step& step, std::size_t input, const CacheUse& use);
  host::Values read_state(const Step& step, Cache cache);
  void write_output(const Step& step, std::size_t output, Rows rows, const host::Values& values);
  Rows rows_of(Stage stage) const;

  const std::unique_ptr<Lane> lane_;
  const ModelConfig& config_;
  const Operators operators_;
  std::map<Site, std::size_t>
      last_reader_;                    // of what a step writes: the place in the program of the last step to read it
  std::map<Site, std::size_t> place_;  // in the program, of the step that writes a site
  Pass pass_;
  std::vector<std::int32_t> tokens_;
  std::vector<int> layer_;   // of each stage: that which was written last
  std::vector<Step> steps_;  // of the span at hand
};

// The operators of the program that the lane leaves to the plain ones, in its order: "scores, softmax". Empty: none.
// Throws Error(environment) when they read a cache that the lane does not show.
std::string left_to_plain_operators(const Lane& lane, const Program& program);

}  // namespace moe_diag
