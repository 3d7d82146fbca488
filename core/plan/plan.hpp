// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/api/stage.hpp"
#include "core/contract/contract.hpp"
#include "core/forward/sequence.hpp"
#include "core/lane/lanes.hpp"
#include "core/model/model.hpp"
#include "core/model/program.hpp"
#include "core/recording/spans.hpp"

namespace moe_diag {

// Some sites of a model, by constant-time look-up.
class SiteSet {
 public:
  explicit SiteSet(const ModelConfig& config)
      : stages_(config.stages), marks_(static_cast<std::size_t>(config.layers + 1) * stages_.size(), false) {}

  void insert(Site site) { marks_[index(site)] = true; }
  bool contains(Site site) const { return marks_[index(site)]; }
  std::vector<Site> in_forward_order() const;

 private:
  std::size_t index(Site site) const {
    return static_cast<std::size_t>(site.layer + 1) * stages_.size() + site.stage.index();
  }
  Stages stages_;
  std::vector<bool> marks_;
};

// The positions of each prompt, ascending; empty for a prompt that is not looked at.
using Positions = std::vector<std::vector<int>>;

// A falsifier against this model: what it looks at.
struct WatchedFalsifier {
  const FalsifierSpec* spec = nullptr;
  int lane = -1, against = -1;  // against: -1 when the metric looks at one lane
  SiteSet sites;
  Positions positions;
  int floor = -1;                // lane whose error is the floor of noise_ratio; -1: none
  std::map<Site, Bound> bounds;  // of the sites where an override is in force
  std::vector<int> experts;      // only these, ascending; empty: all

  bool watches(int expert) const {
    return experts.empty() || expert < 0 || std::binary_search(experts.begin(), experts.end(), expert);
  }
  const Bound& bound_at(Site site) const {
    const auto other = bounds.find(site);
    return other == bounds.end() ? spec->bound : other->second;
  }
};

struct WatchedCapture {
  const CaptureSpec* spec = nullptr;
  std::vector<int> lanes;
  std::vector<int> sinks;  // indices into Contract::sinks
  SiteSet sites;
  Positions positions;
};

// A contract resolved against a model. Points into both.
struct Plan {
  const Contract* contract = nullptr;
  std::vector<WatchedFalsifier> falsifiers;
  std::vector<WatchedCapture> captures;
  std::vector<WatchedCapture> evidence;        // captures `when: falsified`: looked at only once something is
  std::vector<int> head_first;                 // per prompt: first row of final_norm and lm_head that somebody looks at
  Request request;                             // longest pass and sequence
  Program program;                             // what the lanes compute, without faults
  std::shared_ptr<const RecordedSpans> spans;  // of recordings; null: there are none
  int chooser = -1;                            // lane of the oracle when it chooses tokens for a prompt; else -1
};

// The passes of a prompt and what follows it, as the contract cuts them.
std::vector<Stretch> stretches_of(const PromptSpec& prompt);

// Throws Error(usage), every mistake at file:line:column: a layer or position that is not there (naming what is), a
// token outside the vocabulary, a prompt longer than the model's context, a selection or an override that reaches
// nothing, more values asked for than a row has, a planted fault that this model cannot have; with `controls`, also
// controls that it cannot have.
// `recordings`: of its lanes; null: there are none.
Plan make_plan(const Contract& contract, const Model& model, bool controls, const Recordings* recordings = nullptr);

// Why the fault cannot be planted in this model with these prompts; empty: it can.
std::string mistake_of(const FaultSpec& fault, const Contract& contract, const ModelConfig& config,
                       const Program& program);

// What is wrong with the contract's step for this model, a line each at file:line:column: a step for a whole model, a
// part of one without a step, values that the step does not read or that are not there, a shape that does not fit.
// Empty: nothing.
std::string step_mistakes(const Contract& contract, const Model& model, const Program& program);

// What a step gives: "layer 6, moe_router_indices and moe_router_weights".
std::string text_of(const Step& step);

// True when the falsifier looks at the lockstep run, and not only at passes of its lane alone.
bool in_lockstep(const FalsifierSpec& falsifier);

// The chosen lanes and their feeders; -1 chooses none.
std::vector<bool> with_feeders(const std::vector<int>& chosen, const Lanes& lanes);
// The lanes of the lockstep run: those that are looked at in it, the one that chooses tokens, and their feeders.
std::vector<bool> lockstep_lanes(const Plan& plan, const Lanes& lanes);
// The lanes that falsifiers and captures look at, evidence left out, the one that chooses tokens, and their feeders.
std::vector<bool> needed_lanes(const Plan& plan, const Lanes& lanes);
// The lanes that captures look at, and their feeders.
std::vector<bool> lanes_needed_by(const std::vector<WatchedCapture>& captures, const Lanes& lanes);
// The lanes that one falsifier looks at, and their feeders.
std::vector<bool> lanes_needed_by(const WatchedFalsifier& falsifier, const Lanes& lanes);

}  // namespace moe_diag
