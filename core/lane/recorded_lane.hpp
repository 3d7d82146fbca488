// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <vector>

#include "core/api/backend.hpp"
#include "core/contract/contract.hpp"

namespace moe_diag {

// The lane `recorded` of a step alone: it computes nothing. Of the step's outputs it has what the contract expects, of
// every other stage what was written to it; and in its cache the keys and values that were.
class RecordedLane final : public Lane {
 public:
  // Both outlive it.
  RecordedLane(const StepSpec& step, const ModelConfig& config)
      : step_(step), config_(config), written_(config.stages.size()) {}

  void begin(const Pass& pass) override;
  void run(std::span<const Step> steps) override;
  Tensor read(Site site, Rows rows) override;
  void write(Site site, Rows rows, const Tensor& values) override;
  Tensor read_cache(CachePart part, int layer, Stretch positions) override;
  void write_cache(CachePart part, int layer, Stretch positions, const Tensor& values) override;

  static Description description(const StepSpec& step);

 private:
  struct Written {
    Rows rows;
    DType dtype = DType::f32;
    std::vector<std::byte> bytes;
  };

  void keep(CachePart part, int position, const Tensor& values, std::int64_t column);

  const StepSpec& step_;
  const ModelConfig& config_;
  int pass_first_ = 0, total_ = 0;
  std::vector<Written> written_;              // by stage
  std::array<std::vector<double>, 2> cache_;  // by CachePart: [positions, Hk h]
};

}  // namespace moe_diag
