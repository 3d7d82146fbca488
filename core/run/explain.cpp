// SPDX-License-Identifier: MIT
#include "core/run/explain.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <set>
#include <utility>

#include "core/verdict/causes.hpp"
#include "core/verdict/examiner.hpp"

namespace moe_diag {
namespace {

constexpr int least_rows = 8;  // looked at from the first that fails on: a cause shows better in several
constexpr int late_rows = 2;   // the same behind many others

bool same_options(const Options& a, const Options& b) {
  return std::equal(
      a.entries().begin(), a.entries().end(), b.entries().begin(), b.entries().end(),
      [](const Options::Entry& x, const Options::Entry& y) { return x.key == y.key && x.value == y.value; });
}

// Closes what was opened for the rerun, however it ends.
class Copies {
 public:
  explicit Copies(Lanes& lanes) : lanes_(lanes) {}
  Copies(const Copies&) = delete;
  Copies& operator=(const Copies&) = delete;
  ~Copies() { lanes_.drop_copies(); }

 private:
  Lanes& lanes_;
};

}  // namespace

Explanations::Explanations(const Parts& parts, Verdict& verdict)
    : parts_(parts), verdict_(verdict), oracle_(parts.lanes.index_of(parts.contract.oracle)) {
  if (parts.contract.step) feed_.emplace(*parts.contract.step, parts.plan.program.front(), parts.model.config(), true);
  why_not_ = obstacle();
  if (!why_not_.empty()) return;
  for (std::size_t f = 0; f < verdict.judgements.size(); ++f)
    if (verdict.judgements[f].outcome == Outcome::falsified) select(f);
  for (auto& [prompt, again] : again_) widen(again);
  if (again_.empty()) why_not_ = "none of what is falsified is about a step";
}

std::string Explanations::obstacle() const {
  if (oracle_ < 0) return "the contract has no oracle: which step is wrong can only be told beside one in f64";
  const RunningLane& oracle = parts_.lanes[static_cast<std::size_t>(oracle_)];
  if (!oracle.absent.empty()) return fmt::format("the oracle '{}' does not run: {}", oracle.name, oracle.absent);
  if (oracle.description.numerics != "f64")
    return fmt::format("the oracle '{}' computes in {}: which step is wrong can only be told beside one in f64",
                       oracle.name, oracle.description.numerics);
  return "";
}

void Explanations::select(std::size_t f) {
  const WatchedFalsifier& watched = parts_.plan.falsifiers[f];
  if (!unexplainable(watched, oracle_).empty()) return;
  add_lane(watched.lane);
  const bool beside_oracle = watched.against < 0 || watched.against == oracle_;
  if (!beside_oracle) add_lane(watched.against);
  const Sample& s = verdict_.judgements[f].first_failing()->first_failing;
  compared_.push_back({f, s.prompt, s.position, s.expert, s.site, watched.lane, beside_oracle ? -1 : watched.against});
  for (const SiteResult& result : verdict_.judgements[f].sites) {
    if (result.failing == 0) continue;
    const int first = result.first_failing.position;
    const auto [at, fresh] = again_.try_emplace(result.prompt, Again{result.prompt, first, first + 1, result.site});
    Again& again = at->second;
    again.first = std::min(again.first, first);
    if (again.last < result.site) again.last = result.site;
  }
}

// From the first position that fails, a few; and all before it, which cost little more, unless they are many.
void Explanations::widen(Again& again) const {
  const bool late = !feed_ && again.first >= least_rows;
  again.end = std::min(again.first + (late ? late_rows : least_rows), parts_.sequences.known(again.prompt));
  again.first = late ? again.end - late_rows : 0;
}

void Explanations::add_lane(int lane) {
  if (lane != oracle_ && std::count(judged_.begin(), judged_.end(), lane) == 0) judged_.push_back(lane);
}

// A lane of the contract that is what the fed copy of this one would be; -1: none.
int Explanations::twin_of(int lane) const {
  const Lanes& lanes = parts_.lanes;
  if (lanes[static_cast<std::size_t>(lane)].inputs == oracle_) return lane;
  const LaneSpec& spec = parts_.contract.lanes[static_cast<std::size_t>(lane)];
  for (std::size_t i = 0; i < parts_.contract.lanes.size(); ++i) {
    const LaneSpec& other = parts_.contract.lanes[i];
    if (lanes[i].inputs == oracle_ && lanes[i].runs() && other.backend == spec.backend &&
        same_options(other.options, spec.options) && has_same_faults(lane, static_cast<int>(i)))
      return static_cast<int>(i);
  }
  return -1;
}

bool Explanations::has_same_faults(int lane, int other) const {
  std::multiset<std::string> faults[2];
  for (const PlantedFault& fault : parts_.planted) {
    if (fault.lane == lane) faults[0].insert(fault.spec.text);
    if (fault.lane == other) faults[1].insert(fault.spec.text);
  }
  return faults[0] == faults[1];
}

// Where all claims compare other lanes with each other, nobody has needed the oracle so far.
bool Explanations::open_oracle() {
  Lanes& lanes = parts_.lanes;
  std::vector<bool> needed(lanes.size(), false);
  needed[static_cast<std::size_t>(oracle_)] = true;
  lanes.open(needed);
  return lanes[static_cast<std::size_t>(oracle_)].runs();
}

std::uint64_t Explanations::host_bytes() const {
  const RunningLane& oracle = parts_.lanes[static_cast<std::size_t>(oracle_)];
  std::uint64_t bytes = oracle.runs() ? 0 : oracle.description.lane_bytes;
  for (int lane : judged_)
    if (const Description& d = parts_.lanes[static_cast<std::size_t>(lane)].description;
        twin_of(lane) < 0 && !d.asynchronous)
      bytes += d.lane_bytes;
  return bytes;
}

std::vector<Subject> Explanations::open_subjects() {
  std::vector<Subject> subjects;
  for (int lane : judged_) {
    const int twin = twin_of(lane);
    subjects.push_back({lane, twin >= 0 ? twin : parts_.lanes.add_fed_copy(lane, oracle_)});
  }
  return subjects;
}

// A fault of a lane is one of its copy, too.
std::vector<PlantedFault> Explanations::planted(const std::vector<Subject>& subjects) const {
  std::vector<PlantedFault> faults = parts_.planted;
  const auto in_contract = static_cast<int>(parts_.contract.lanes.size());
  for (const Subject& s : subjects)
    for (const PlantedFault& fault : parts_.planted)
      if (fault.lane == s.lane && s.fed >= in_contract) faults.push_back({s.fed, fault.spec});
  return faults;
}

std::vector<bool> Explanations::active(const std::vector<Subject>& subjects) const {
  std::vector<int> chosen = {oracle_};
  for (const Subject& s : subjects) chosen.insert(chosen.end(), {s.lane, s.fed});
  return with_feeders(chosen, parts_.lanes);
}

// The residual stream, and the values of layers that something is falsified at.
std::vector<Stage> Explanations::curves() const {
  std::set<Stage> stages = {Stage::post_ffn_residual};
  for (const Judgement& j : verdict_.judgements)
    if (j.outcome == Outcome::falsified)
      for (const SiteResult& site : j.sites)
        if (site.failing > 0 && site.site.layer >= 0 && info(site.site.stage).payload == Payload::values)
          stages.insert(site.site.stage);
  return {stages.begin(), stages.end()};
}

// As the run's, but that what is looked at begins and ends one.
std::vector<Stretch> Explanations::passes(const Again& again) const {
  std::vector<Stretch> stretches;
  const auto add = [&](int first, int end) {
    if (first < end) stretches.push_back({first, end - first});
  };
  for (const Stretch& s : feed_ ? feed_->stretches() : parts_.sequences.stretches(again.prompt)) {
    const int looked_at = std::clamp(again.first, s.first, s.end());
    add(s.first, std::min(looked_at, again.end));
    add(looked_at, std::min(s.end(), again.end));
  }
  return stretches;
}

// True when the lane's cache has the positions before those that are looked at: the prompt is the last that it ran, as
// part of the run, and no fault keeps what a cache would.
bool Explanations::holds(int lane, const Again& again) const {
  const RunningLane::Cached cached = parts_.lanes[static_cast<std::size_t>(lane)].cached();
  const bool reads_back = std::any_of(parts_.planted.begin(), parts_.planted.end(), [&](const PlantedFault& fault) {
    const Step* step = find_step(parts_.plan.program, fault.site());
    return fault.lane == lane && step && reads_cache(*step);
  });
  return parts_.lanes_as_run && !reads_back && cached.sequence == parts_.sequences.tokens(again.prompt).data() &&
         cached.positions >= again.first;
}

// Before the positions that are looked at, fed lanes need no more than the oracle's keys and values. Those that feed
// others do all that they do.
std::vector<LeadUp> Explanations::lead_up(const std::vector<Subject>& subjects, const Again& again) const {
  const Lanes& lanes = parts_.lanes;
  std::vector<LeadUp> lead_up(lanes.size(), LeadUp::all);
  for (const Subject& s : subjects) {
    if (s.fed != s.lane && holds(s.lane, again)) lead_up[static_cast<std::size_t>(s.lane)] = LeadUp::rests;
    lead_up[static_cast<std::size_t>(s.fed)] = LeadUp::caches;
  }
  for (std::size_t i = 0; i < lanes.size(); ++i)
    for (const int feeder : {lanes[i].inputs, lanes[i].routing})
      if (feeder >= 0) lead_up[static_cast<std::size_t>(feeder)] = LeadUp::all;
  return lead_up;
}

void Explanations::make(const AtLayer& at_layer) {
  if (!open_oracle()) return leave_unexplained(verdict_, parts_.plan, oracle_, obstacle());
  const Copies closed_in_the_end(parts_.lanes);
  const std::vector<Subject> subjects = open_subjects();
  std::unique_ptr<Examiner> examiner = run(subjects, at_layer);
  name_causes(verdict_, parts_.plan, parts_.lanes, *examiner);
  if (!needs_more_rows(*examiner) || !make_whole()) return;
  examiner = run(subjects, at_layer);
  name_causes(verdict_, parts_.plan, parts_.lanes, *examiner);
}

// The first rows that fail mostly show why all others do. They do not when what is wrong depends on how many rows a
// pass has, or when nothing was wrong in them: it may be in rows before, which they read keys and values of.
bool Explanations::needs_more_rows(const Examiner& examiner) const {
  return std::any_of(examiner.compared().begin(), examiner.compared().end(), [&](const SideBySide& sides) {
    const auto saw = [&](int lane) { return lane >= 0 && examiner.saw_failing_step(sides.prompt, lane, sides.site); };
    if (again_.at(sides.prompt).first > 0 && !saw(sides.lane) && !saw(sides.against)) return true;
    const Cause cause = verdict_.judgements[sides.falsifier].explanation.cause;
    const bool is_of_a_step = is_of_step(cause) || cause == Cause::inherited || cause == Cause::nonfinite_inherited;
    if (!sides.is_measured) return sides.against >= 0 || !is_of_a_step;
    return !is_seen_again(sides, verdict_);
  });
}

// False when all rows are run again already.
bool Explanations::make_whole() {
  bool longer = false;
  for (auto& [prompt, again] : again_) {
    const int known = parts_.sequences.known(prompt);
    longer = longer || again.first > 0 || again.end < known;
    again.first = 0;
    again.end = known;
  }
  return longer;
}

std::unique_ptr<Examiner> Explanations::run(const std::vector<Subject>& subjects, const AtLayer& at_layer) {
  std::int64_t done = 0, total = 0;
  bool several = false;
  for (const auto& [prompt, again] : again_) {
    const auto count = static_cast<std::int64_t>(passes(again).size());
    total += count;
    several = several || count > 1;
  }
  auto examiner = std::make_unique<Examiner>(Examiner::Parts{parts_.plan, parts_.model, parts_.lanes, oracle_},
                                             subjects, compared_, curves(), several);
  Bus bus;
  bus.add(*examiner);
  Forward forward(parts_.model, parts_.lanes, bus, planted(subjects), active(subjects), feed_ ? &*feed_ : nullptr);
  const int layers = parts_.model.config().layers;
  for (const auto& [prompt, again] : again_) {
    forward.end_after(again.last);
    forward.look_from(again.first, lead_up(subjects, again));
    examiner->look_from(again.first);
    const int head_first = parts_.plan.head_first[static_cast<std::size_t>(prompt)];
    for (const Stretch& stretch : passes(again)) {
      const auto tokens = parts_.sequences.tokens(prompt);
      forward.pass(feed_ ? feed_->pass_over(tokens, stretch) : pass_over(tokens, stretch, head_first), prompt,
                   [&](int layer) { at_layer(done * layers + layer, total * layers); });
      ++done;
    }
  }
  return examiner;
}

}  // namespace moe_diag
