// SPDX-License-Identifier: MIT
#pragma once

#include <vector>

#include "core/bus/bus.hpp"
#include "core/plan/plan.hpp"
#include "core/verdict/divergence.hpp"

namespace moe_diag {

// Counts the experts that a lane gives the prompts' rows to, at the layers where anybody looks behind the router.
class Coverage final : public Hook {
 public:
  // `lane` takes part in the lockstep run; -1: nothing is counted.
  Coverage(const Plan& plan, const ModelConfig& config, int lane);

  bool wants(int prompt, int lane, Site site) const override;
  void show(Sighting& sighting) override;

  std::vector<LayerCoverage> layers() const;

 private:
  const int lane_;
  std::vector<bool> looked_at_;                  // per layer
  std::vector<std::vector<std::int64_t>> rows_;  // per layer and expert
};

}  // namespace moe_diag
