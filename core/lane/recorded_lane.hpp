// SPDX-License-Identifier: MIT
#pragma once

#include <vector>

#include "core/api/backend.hpp"
#include "core/contract/contract.hpp"

namespace moe_diag {

// The lane `recorded` of a step alone: it computes nothing. Of the step's outputs it has what the contract expects, of
// every other stage what was written to it, and so of its caches.
class RecordedLane final : public Lane {
 public:
  // Both outlive it.
  RecordedLane(const StepSpec& step, const ModelConfig& config)
      : step_(step), config_(config), written_(config.stages.size()), cache_(config.caches.size()) {}

  void begin(const Pass& pass) override;
  void run(std::span<const Step> steps) override;
  Tensor read(Site site, Rows rows) override;
  bool has(Site site, Stretch positions) const override;
  void write(Site site, Rows rows, const Tensor& values) override;
  Tensor read_cache(Cache cache, int layer, Stretch positions) override;
  void write_cache(Cache cache, int layer, Stretch positions, const Tensor& values) override;
  Abilities abilities() const override { return {.recomputes = false}; }

  static Description description(const StepSpec& step);

 private:
  struct Written {
    Rows rows;
    DType dtype = DType::f32;
    std::vector<std::byte> bytes;
  };

  Tensor rows_of(Site site, Stretch positions) const;
  void keep(Cache cache, int layer, int position, const Tensor& values, std::int64_t column);

  const StepSpec& step_;
  const ModelConfig& config_;
  int pass_first_ = 0, total_ = 0;
  std::vector<Written> written_;            // by stage
  std::vector<std::vector<double>> cache_;  // by cache, of the step's layer: [positions, width]
};

}  // namespace moe_diag
