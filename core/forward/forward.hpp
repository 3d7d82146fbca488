// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "core/bus/bus.hpp"
#include "core/bus/fault.hpp"
#include "core/forward/given_inputs.hpp"
#include "core/model/program.hpp"

namespace moe_diag {

// All lanes through the program in lockstep: each runs up to the next step of its own that somebody looks at, it is
// shown, and lanes with inputs from another take them over. So looking at one lane does not change what another may
// fuse. Memory holds one layer per lane, whatever is looked at.
class Forward {
 public:
  // Of the lanes that run, only the active ones take part; the feeders of an active lane must be active. `feed` gives
  // the one step of a part of a model what it reads; null: the model is whole.
  Forward(Lanes& lanes, Bus& bus, std::vector<PlantedFault> faults, const std::vector<bool>& active,
          GivenInputs* feed = nullptr);

  // Passes end behind the step that writes the site, instead of at the program's end.
  void end_after(Site site);

  // One pass of one prompt. Lanes have computed the positions before it, but for those with inputs from a lane that
  // has: they take its keys and values over. `at_layer` is told each layer as it begins; it may be empty.
  void pass(const Pass& pass, int prompt, const std::function<void(int)>& at_layer = {});

  // How many values each fault has changed. 0: it was planted where nothing is computed, or made no difference.
  std::vector<std::int64_t> changed() const;

 private:
  void prepare(PlantedFault fault);
  void begin(const Pass& pass);
  void take_over_caches(int lane, int from, Stretch positions);
  void take_over_cache(int lane, int from, CacheSite at, Stretch positions);
  void plan_stops(int prompt);
  std::size_t span_end(std::size_t at, const std::vector<bool>& stops, bool by_layer) const;
  void run_on(int lane, bool by_layer);
  int feeder(int lane, Stage stage) const;
  bool is_asynchronous(int lane) const;
  bool may_run_ahead(int lane, bool by_layer) const;
  void stop(const Step& step, const Pass& pass, int prompt);
  void plant(Sighting& sighting);
  void hand_over(Sighting& sighting);

  Lanes& lanes_;
  Bus& bus_;
  GivenInputs* feed_;
  std::vector<FaultPlanter> faults_;
  std::vector<Program> programs_;               // per lane, whose wants differ
  std::vector<std::vector<bool>> fault_needs_;  // per lane and step: a fault needs its outputs
  std::vector<int> feeding_order_;              // lanes that take part
  std::vector<int> launch_order_;               // the same, those that return early first
  std::size_t steps_;                           // of the program that are run
  std::vector<std::vector<bool>> lane_stops_;   // per lane and step: it stops after it
  std::vector<bool> stops_;                     // per step: any does
  std::vector<std::size_t> ran_;                // per lane: steps of the pass at hand
  int planned_prompt_ = -1;
};

}  // namespace moe_diag
