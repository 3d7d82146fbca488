// SPDX-License-Identifier: MIT
#pragma once

#include <vector>

#include "core/api/step.hpp"
#include "core/contract/contract.hpp"
#include "core/forward/sequence.hpp"
#include "core/lane/lanes.hpp"
#include "core/model/program.hpp"

namespace moe_diag {

// The stages that a step alone is given: what it reads, and what its outputs are compared by: the experts that were
// chosen, or the logits they were chosen by.
std::vector<Stage> stages_given(const Step& step);

// True for what a step alone is given of all positions up to its last: keys and values of attention, and all that a
// step reads that moves a state on, which is computed from them.
bool is_of_all_positions(const Step& step, Stage stage);

// Gives lanes what one step reads.
class GivenInputs {
 public:
  // All outlive it.
  GivenInputs(const StepSpec& spec, const Step& step, const ModelConfig& config)
      : spec_(spec), step_(step), config_(config) {}

  // The pass of the spec's positions; before it, where the caches need earlier ones, one of those, whose outputs are
  // not shown.
  std::vector<Stretch> stretches() const;
  bool is_shown(const Pass& pass) const { return pass.first == spec_.first; }
  // Of a stretch of the prompt's tokens.
  Pass pass_over(const TokenSequence& sequence, Stretch stretch) const;

  // After begin(), before run().
  void feed(const Pass& pass, RunningLane& lane);

 private:
  const StepSpec& spec_;
  const Step& step_;
  const ModelConfig& config_;
  std::vector<double> zeros_;  // what the pass that fills the cache reads beside
};

}  // namespace moe_diag
