// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "core/bus/bus.hpp"
#include "core/bus/fault.hpp"
#include "core/forward/program.hpp"
#include "core/forward/step_feed.hpp"

namespace moe_diag {

// What a lane does in passes that only lead up to positions that are looked at.
enum class LeadUp {
  all,     // all that it does in other passes
  caches,  // fills its cache from the lane that it has inputs from; it feeds none
  rests,   // nothing: its cache holds these positions
};

// All lanes through the program in lockstep: they run up to the next step that somebody looks at, it is shown, and
// lanes with inputs from another take them over. Memory holds one layer per lane, whatever is looked at.
class Forward {
 public:
  // Of the lanes that run, only the active ones take part; the feeders of an active lane must be active. `feed` gives
  // the one step of a part of a model what it reads; null: the model is whole.
  Forward(const Model& model, Lanes& lanes, Bus& bus, std::vector<PlantedFault> faults, const std::vector<bool>& active,
          StepFeed* feed = nullptr);

  // Passes end behind the step that writes the site, instead of at the program's end. Before the first pass.
  void end_after(Site site);

  // From here on, passes that end before position `first` only lead up to it: nothing of them is shown but the outputs
  // of steps that read the cache. `lead_up`: per lane.
  void look_from(int first, std::vector<LeadUp> lead_up);

  // One pass of one prompt. Call it for a prompt's passes in the order of their positions. `at_layer` is told each
  // layer as it begins; it may be empty.
  void pass(const Pass& pass, int prompt, const std::function<void(int)>& at_layer = {});

  // How many values each fault has changed. 0: it was planted where nothing is computed, or made no difference.
  std::vector<std::int64_t> changed() const;

 private:
  void prepare(PlantedFault fault);
  void plan_stops(int prompt);
  std::size_t span_end(std::size_t at, bool by_layer) const;
  void run(int lane, std::size_t at, std::size_t end);
  LeadUp part_of(int lane) const;
  bool computes(int lane, const Step& step) const;
  bool is_shown(const Step& step) const;
  int feeder(int lane, Stage stage) const;
  bool is_asynchronous(int lane) const;
  bool may_run_ahead(std::size_t at, std::size_t end) const;
  void stop(const Step& step, const Pass& pass, int prompt);
  void plant(const Step& step, Sighting& sighting);
  void hand_over(Sighting& sighting);

  Lanes& lanes_;
  Bus& bus_;
  StepFeed* feed_;
  std::vector<FaultPlanter> faults_;
  std::vector<Program> programs_;               // per lane, whose wants differ
  std::vector<std::vector<bool>> fault_needs_;  // per lane and step: a fault needs its outputs
  std::vector<int> feeding_order_;              // lanes that take part
  std::vector<int> launch_order_;               // the same, those that return early first
  std::size_t steps_;                           // of the program that are run
  std::vector<bool> stops_;                     // per step of the pass at hand: lanes stop after it
  int planned_prompt_ = -1;
  int look_from_ = 0;
  std::vector<LeadUp> lead_up_;
  bool leads_up_ = false;  // the pass at hand does
};

}  // namespace moe_diag
