// SPDX-License-Identifier: MIT
#include "core/forward/forward.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <span>
#include <utility>

#include "core/contract/fault.hpp"
#include "core/ops/operator.hpp"

namespace moe_diag {
namespace {

bool has(const Step& step, Stage stage) { return std::find(step.out.begin(), step.out.end(), stage) != step.out.end(); }
bool writes(const Step& step, Site site) { return step.layer == site.layer && has(step, site.stage); }

std::vector<Program> programs_of(const Lanes& lanes) {
  std::vector<Program> programs;
  for (std::size_t lane = 0; lane < lanes.size(); ++lane) programs.push_back(lanes.program(lane));
  return programs;
}

}  // namespace

Forward::Forward(Lanes& lanes, Bus& bus, std::vector<PlantedFault> faults, const std::vector<bool>& active,
                 GivenInputs* feed)
    : lanes_(lanes),
      bus_(bus),
      feed_(feed),
      programs_(programs_of(lanes)),
      fault_needs_(lanes.size(), std::vector<bool>(programs_.front().size())),
      feeding_order_(lanes.feeding_order()),
      steps_(programs_.front().size()) {
  feeding_order_.erase(std::remove_if(feeding_order_.begin(), feeding_order_.end(),
                                      [&](int lane) { return !active[static_cast<std::size_t>(lane)]; }),
                       feeding_order_.end());
  launch_order_ = feeding_order_;
  std::stable_partition(launch_order_.begin(), launch_order_.end(),
                        [&](int lane) { return lanes_[static_cast<std::size_t>(lane)].description.asynchronous; });
  for (PlantedFault& fault : faults) prepare(std::move(fault));
}

// The lane must store what the fault replaces, and what it reads: each stage as the last step before it wrote it.
void Forward::prepare(PlantedFault fault) {
  const Program& program = programs_.front();
  const auto step =
      std::find_if(program.begin(), program.end(), [&](const Step& s) { return writes(s, fault.site()); });
  if (step == program.end())
    throw Error(ErrorKind::usage, "fault '" + fault.spec.text + "': the model has no such layer");
  std::vector<bool>& needs = fault_needs_[static_cast<std::size_t>(fault.lane)];
  needs[static_cast<std::size_t>(step - program.begin())] = true;
  faults_.emplace_back(std::move(fault), *step);
  for (Stage stage : faults_.back().reads())
    for (auto before = step + 1; before != program.begin();)
      if (has(*--before, stage)) {
        needs[static_cast<std::size_t>(before - program.begin())] = true;
        break;
      }
}

void Forward::end_after(Site site) {
  steps_ = steps_up_to(programs_.front(), site).size();
  planned_prompt_ = -1;
}

// The lane whose values of the step's output replace this lane's, or -1.
int Forward::feeder(int lane, Stage stage) const {
  const RunningLane& to = lanes_[static_cast<std::size_t>(lane)];
  if (to.inputs >= 0) return to.inputs;
  return is_routing(stage) ? to.routing : -1;
}

std::vector<std::int64_t> Forward::changed() const {
  std::vector<std::int64_t> changed;
  for (const FaultPlanter& fault : faults_) changed.push_back(fault.changed());
  return changed;
}

void Forward::pass(const Pass& pass, int prompt, const std::function<void(int)>& at_layer) {
  plan_stops(prompt);
  begin(pass);
  const bool by_layer = at_layer != nullptr;
  const std::size_t count = stops_.size();
  int layer = -1;
  for (std::size_t at = 0, end = 0; at < count; at = end) {
    end = span_end(at, stops_, by_layer);
    if (at_layer && programs_.front()[at].layer > layer) at_layer(layer = programs_.front()[at].layer);
    for (int lane : launch_order_)
      if (ran_[static_cast<std::size_t>(lane)] == at) run_on(lane, by_layer);
    if (!stops_[end - 1]) continue;
    // Devices compute the next span while what this one gave is copied and looked at.
    for (int lane : launch_order_)
      if (is_asynchronous(lane) && ran_[static_cast<std::size_t>(lane)] == end && may_run_ahead(lane, by_layer))
        run_on(lane, by_layer);
    stop(programs_.front()[end - 1], pass, prompt);
  }
}

void Forward::begin(const Pass& pass) {
  std::vector<bool> knows(lanes_.size(), false);
  ran_.assign(lanes_.size(), 0);
  for (int lane : launch_order_) {
    RunningLane& running = lanes_[static_cast<std::size_t>(lane)];
    knows[static_cast<std::size_t>(lane)] = running.has_cached(pass.sequence, pass.first);
    running.begin(pass);
    if (feed_) feed_->feed(pass, running);
  }
  for (int lane : feeding_order_) {
    const int from = lanes_[static_cast<std::size_t>(lane)].inputs;
    if (pass.first == 0 || from < 0 || knows[static_cast<std::size_t>(lane)] || !knows[static_cast<std::size_t>(from)])
      continue;
    take_over_caches(lane, from, {0, pass.first});
    knows[static_cast<std::size_t>(lane)] = true;
  }
}

void Forward::take_over_caches(int lane, int from, Stretch positions) {
  for (const Step& step : std::span(programs_.front()).first(steps_))
    for (const CacheUse& use : step.caches) take_over_cache(lane, from, {use.cache, step.layer}, positions);
}

// A state has one value, that behind the last position.
void Forward::take_over_cache(int lane, int from, CacheSite at, Stretch positions) {
  if (info(at.cache).is_state) positions = {positions.end() - 1, 1};
  RunningLane& feeder = lanes_[static_cast<std::size_t>(from)];
  const Tensor values = feeder.read_cache(at.cache, at.layer, positions, lanes_.config());
  if (!values)
    throw Error(
        ErrorKind::environment,
        fmt::format("{}: read_cache gave nothing of the {} of layer {}, positions {} to {}; a lane that shows no "
                    "caches says so in abilities()",
                    feeder.label(), name_of(at.cache), at.layer, positions.first, positions.end() - 1));
  lanes_[static_cast<std::size_t>(lane)].write_cache(at.cache, at.layer, positions, values);
}

// Up to where somebody looks at the lane again, whatever is looked at of others until then.
void Forward::run_on(int lane, bool by_layer) {
  const auto i = static_cast<std::size_t>(lane);
  const std::size_t at = ran_[i], end = span_end(at, lane_stops_[i], by_layer);
  lanes_[i].run(std::span<const Step>(programs_[i]).subspan(at, end - at));
  ran_[i] = end;
}

bool Forward::is_asynchronous(int lane) const {
  return lanes_[static_cast<std::size_t>(lane)].description.asynchronous;
}

// True when the lane's next span can run before the step in front of it was looked at: nothing of that is going to be
// replaced, and no stage that is there to be read is written, which is so while they are of the same layer.
bool Forward::may_run_ahead(int lane, bool by_layer) const {
  const Program& program = programs_.front();
  const auto i = static_cast<std::size_t>(lane);
  const std::size_t at = ran_[i], end = at < steps_ ? span_end(at, lane_stops_[i], by_layer) : at;
  const Step& before = program[at - 1];
  for (std::size_t s = at; s < end; ++s)
    if (program[s].layer != before.layer) return false;
  for (Stage stage : before.out) {
    if (feeder(lane, stage) >= 0) return false;
    for (const FaultPlanter& planter : faults_)
      if (planter.fault().lane == lane && planter.fault().site() == site_of(before, stage)) return false;
  }
  return at < end;
}

// One past the last step of the span that begins at `at`: up to a stop, or up to the layer's end when layers are
// counted.
std::size_t Forward::span_end(std::size_t at, const std::vector<bool>& stops, bool by_layer) const {
  const Program& program = programs_.front();
  std::size_t end = at;
  while (end < stops.size()) {
    const bool last = stops[end++];
    if (last || (by_layer && end < stops.size() && program[end].layer != program[end - 1].layer)) break;
  }
  return end;
}

// A lane stops after a step when a hook wants one of its outputs, a fault needs one, or they replace others or are
// replaced.
void Forward::plan_stops(int prompt) {
  if (prompt == planned_prompt_) return;
  planned_prompt_ = prompt;
  stops_.assign(steps_, false);
  lane_stops_.assign(lanes_.size(), stops_);
  for (std::size_t i = 0; i < stops_.size(); ++i)
    for (int lane : feeding_order_) {
      Step& step = programs_[static_cast<std::size_t>(lane)][i];
      step.want = fault_needs_[static_cast<std::size_t>(lane)][i];
      for (Stage stage : step.out) {
        step.want = step.want || bus_.wanted(prompt, lane, site_of(step, stage)) || feeder(lane, stage) >= 0;
        for (int other : feeding_order_) step.want = step.want || feeder(other, stage) == lane;
      }
      lane_stops_[static_cast<std::size_t>(lane)][i] = step.want;
      stops_[i] = stops_[i] || step.want;
    }
}

void Forward::stop(const Step& step, const Pass& pass, int prompt) {
  for (Stage stage : step.out) {
    Sighting sighting(lanes_, pass, prompt, site_of(step, stage));
    plant(sighting);
    if (!feed_ || feed_->is_shown(pass)) bus_.deliver(sighting, feeding_order_);
  }
  // Only now: the outputs of one step belong together, as the router's weights belong to its indices, and a state to
  // what the step made of it. Rows of an input that went into a cache are the feeder's already.
  for (Stage stage : step.out) {
    Sighting sighting(lanes_, pass, prompt, site_of(step, stage));
    hand_over(sighting);
  }
  for (const CacheUse& use : step.caches)
    for (int lane : feeding_order_)
      if (const int from = lanes_[static_cast<std::size_t>(lane)].inputs; from >= 0 && use.input < 0)
        take_over_cache(lane, from, {use.cache, step.layer}, {pass.first, pass.rows()});
}

// Of several faults at one site, those of the computation come first: they would undo the others.
void Forward::plant(Sighting& sighting) {
  for (const bool computed : {true, false})
    for (FaultPlanter& planter : faults_) {
      const PlantedFault& fault = planter.fault();
      const bool takes_part = std::count(feeding_order_.begin(), feeding_order_.end(), fault.lane) > 0;
      if (takes_part && fault.site() == sighting.site && is_computed(fault.spec) == computed)
        planter.plant(sighting, lanes_);
    }
}

void Forward::hand_over(Sighting& sighting) {
  for (int lane : feeding_order_) {
    const int from = feeder(lane, sighting.site.stage);
    if (from < 0) continue;
    // Not the sighting's view: the feeder itself may have taken over values since.
    const Tensor values = sighting.now(from, sighting.site.stage);
    if (values) lanes_[static_cast<std::size_t>(lane)].write(sighting.site, sighting.rows(), values);
  }
}

}  // namespace moe_diag
