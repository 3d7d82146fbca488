// SPDX-License-Identifier: MIT
#include "core/explain/explain.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <set>
#include <utility>

#include "core/explain/causes.hpp"
#include "core/explain/examiner.hpp"
#include "core/explain/out_of_line.hpp"
#include "core/ops/operator.hpp"
#include "core/plan/memory.hpp"

namespace moe_diag {
namespace {

constexpr int least_rows = 8;  // looked at from the first that fails on: a cause shows better in several
constexpr int late_rows = 2;   // the same behind many others
constexpr int few_rows = 48;   // of a prompt that is looked at whole: later rows may have another cause

constexpr std::uint64_t most_kept_for_explaining = std::uint64_t{256} << 20;  // bytes of the steps that fail

bool same_options(const Options& a, const Options& b) {
  return std::equal(
      a.entries().begin(), a.entries().end(), b.entries().begin(), b.entries().end(),
      [](const Options::Entry& x, const Options::Entry& y) { return x.key == y.key && x.value == y.value; });
}

bool saw_wrong_step(const Examiner& examiner, const SideBySide& sides) {
  const auto saw = [&](int lane) {
    return lane >= 0 && examiner.saw_failing_step(sides.prompt, lane, sides.site, sides.position);
  };
  return saw(sides.lane) || saw(sides.against);
}

// What was recorded of a lane, in its place.
class StandIn {
 public:
  // `kept` null: the lane itself.
  StandIn(RunningLane& lane, const KeptStages* kept, const ModelConfig& config, const Program& program) : lane_(lane) {
    if (!kept) return;
    itself_ = lane.replace(nullptr);
    lane.replace(std::make_unique<ReplayedLane>(*kept, *itself_, config, program));
  }
  StandIn(const StandIn&) = delete;
  StandIn& operator=(const StandIn&) = delete;
  ~StandIn() {
    if (itself_) lane_.replace(std::move(itself_));
  }

 private:
  RunningLane& lane_;
  std::unique_ptr<Lane> itself_;
};

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

std::string obstacle_to_explaining(const Lanes& lanes, int index) {
  if (index < 0) return "the contract has no oracle: which step is wrong can only be told beside one in f64";
  const RunningLane& oracle = lanes[static_cast<std::size_t>(index)];
  if (!oracle.absent.empty()) return fmt::format("the oracle '{}' does not run: {}", oracle.name, oracle.absent);
  if (oracle.description.numerics != "f64")
    return fmt::format("the oracle '{}' computes in {}: which step is wrong can only be told beside one in f64",
                       oracle.name, oracle.description.numerics);
  return "";
}

Explanations::Explanations(const Parts& parts, Verdict& verdict)
    : parts_(parts), verdict_(verdict), oracle_(parts.lanes.index_of(parts.contract.oracle)) {
  if (parts.contract.step) feed_.emplace(*parts.contract.step, parts.plan.program.front(), parts.model.config());
  why_not_ = obstacle_to_explaining(parts.lanes, oracle_);
  if (!why_not_.empty()) return;
  for (std::size_t f = 0; f < verdict.judgements.size(); ++f)
    if (verdict.judgements[f].outcome == Outcome::falsified) select(f);
  for (auto& [prompt, again] : again_) widen(again);
  if (again_.empty())
    why_not_ = beside_nonfinite_ ? "the oracle is not finite where the claims are falsified"
                                 : "none of what is falsified is about a step";
}

bool Explanations::recomputes(int lane) const {
  return lane < 0 || parts_.lanes[static_cast<std::size_t>(lane)].abilities().recomputes;
}

void Explanations::select(std::size_t f) {
  const WatchedFalsifier& watched = parts_.plan.falsifiers[f];
  if (!unexplainable(watched, oracle_).empty() || !recomputes(watched.lane) || !recomputes(watched.against)) return;
  const Sample& s = verdict_.judgements[f].leading_failure()->first_failing;
  if (!parts_.watch->is_finite(s.prompt, s.site, s.position)) {
    beside_nonfinite_ = true;  // that is the cause, and no lane can be held against it
    return;
  }
  add_lane(watched.lane);
  const bool beside_oracle = watched.against < 0 || watched.against == oracle_;
  if (!beside_oracle) add_lane(watched.against);
  compared_.push_back({f, s.prompt, s.position, s.expert, s.site, watched.lane, beside_oracle ? -1 : watched.against});
  for (const SiteResult& result : verdict_.judgements[f].sites) {
    if (result.failing == 0) continue;
    const int first = result.first_failing.position;
    const auto [at, fresh] = again_.try_emplace(result.prompt, Again{result.prompt, first, first + 1, result.site});
    Again& again = at->second;
    again.first = std::min(again.first, first);
    again.last = std::max(again.last, result.site);
  }
}

const KeptStages* Explanations::oracle_stages(int prompt) const {
  return parts_.record ? parts_.record->of(prompt) : nullptr;
}

// A short prompt whole; else from the first position that fails, a few; and all before it, unless they are many and the
// oracle would have to compute them again.
void Explanations::widen(Again& again) const {
  const bool late = !feed_ && again.first >= least_rows && !oracle_stages(again.prompt);
  const int known = parts_.sequences.known(again.prompt);
  const bool whole = !late && !feed_ && known <= few_rows;
  again.end = whole ? known : std::min(again.first + (late ? late_rows : least_rows), known);
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
        same_options(other.options, spec.options) && other.engine == spec.engine && other.base == spec.base &&
        has_same_faults(lane, static_cast<int>(i)))
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
  const auto in_order = [](Stage a, Stage b) { return comes_before(a, b); };
  std::set<Stage, decltype(in_order)> stages(in_order);
  stages.insert(parts_.model.config().stages.of(Role::layer_output));
  for (const Judgement& j : verdict_.judgements)
    if (j.outcome == Outcome::falsified)
      for (const SiteResult& site : j.sites)
        if (site.failing > 0 && site.site.layer >= 0 && payload_of(site.site.stage) == Payload::values)
          stages.insert(site.site.stage);
  return {stages.begin(), stages.end()};
}

void Explanations::make(const AtLayer& at_layer) {
  if (!open_oracle())
    return leave_unexplained(verdict_, parts_.plan, oracle_, obstacle_to_explaining(parts_.lanes, oracle_));
  const Copies closed_in_the_end(parts_.lanes);
  const std::vector<Subject> subjects = open_subjects();
  Progress progress{at_layer};
  std::unique_ptr<Examiner> examiner = run(subjects, progress);
  name_causes(verdict_, parts_.plan, parts_.lanes, *examiner);
  if (needs_more_rows(*examiner) && make_whole()) {
    examiner.reset();
    examiner = run(subjects, progress);
    name_causes(verdict_, parts_.plan, parts_.lanes, *examiner);
  }
  examiner->explain(leading_places(verdict_));
  name_causes(verdict_, parts_.plan, parts_.lanes, *examiner);
}

// Positions are looked at from behind: the pass over some keeps what lanes have in their caches of those before.
std::unique_ptr<Examiner> Explanations::run(const std::vector<Subject>& subjects, Progress& progress) {
  const std::uint64_t most_kept = std::min(most_kept_for_explaining, available_memory() / 8);
  auto examiner = std::make_unique<Examiner>(
      Examiner::Parts{parts_.plan, parts_.model, parts_.lanes, oracle_, most_kept}, subjects, compared_, curves());
  Bus bus;
  bus.add(*examiner);
  bus.add(*parts_.watch);
  const std::vector<bool> lanes = active(subjects);
  for (auto& [prompt, again] : again_) {
    const StandIn replayed(parts_.lanes[static_cast<std::size_t>(oracle_)], oracle_stages(prompt),
                           parts_.model.config(), parts_.plan.program);
    Forward forward(parts_.lanes, bus, planted(subjects), lanes, feed_ ? &*feed_ : nullptr);
    forward.end_after(again.last);
    if (const auto last_rows = reachable_last_rows(again, subjects, lanes)) walk(forward, prompt, *last_rows, progress);
    lead_up(again, lanes, progress);
    if (again.first > 0 && last_read_of_cache(again) && !show_caches(subjects, lanes)) again.first = 0;
    walk(forward, prompt, {again.first, again.end - again.first}, progress);
    look_before(again, forward, *examiner, progress);
  }
  return examiner;
}

// A cause that fits the first rows may not fit the last: an offset that grows, a factor for each tile of keys. None
// where they are among those looked at, or lanes have no caches to reach them from.
std::optional<Stretch> Explanations::reachable_last_rows(const Again& again, const std::vector<Subject>& subjects,
                                                         const std::vector<bool>& active) {
  const Stretch last{parts_.sequences.known(again.prompt) - late_rows, late_rows};
  if (feed_ || last.first < again.end) return std::nullopt;
  if (!last_read_of_cache(again)) return last;
  const Pass pass = pass_over(parts_.sequences.sequence(again.prompt), last, 0);
  const bool are_there = show_caches(subjects, active) && without_caches(again.prompt, pass, active).empty();
  return are_there ? std::optional(last) : std::nullopt;
}

// Lanes that have the positions before the pass neither in their caches nor kept.
std::vector<int> Explanations::without_caches(int prompt, const Pass& pass, const std::vector<bool>& active) {
  std::vector<int> behind;
  for (int lane = 0; lane < static_cast<int>(parts_.lanes.size()); ++lane) {
    const RunningLane& running = parts_.lanes[static_cast<std::size_t>(lane)];
    if (active[static_cast<std::size_t>(lane)] && running.inputs < 0 &&
        !running.has_cached(pass.sequence, pass.first) && !parts_.kept.restore(prompt, lane, pass))
      behind.push_back(lane);
  }
  return behind;
}

// Lanes that have the positions before those that are looked at neither in their caches nor kept compute them, nobody
// looking. Those that are fed take over what they need of them.
void Explanations::lead_up(const Again& again, const std::vector<bool>& active, Progress& progress) {
  const std::optional<Site> last = last_read_of_cache(again);
  if (again.first == 0 || !last) return;
  const Pass pass = pass_over(parts_.sequences.sequence(again.prompt), {again.first, again.end - again.first}, 0);
  const std::vector<int> behind = without_caches(again.prompt, pass, active);
  if (behind.empty()) return;
  Bus nobody;
  Forward forward(parts_.lanes, nobody, parts_.planted, with_feeders(behind, parts_.lanes));
  forward.end_after(*last);
  walk(forward, again.prompt, {0, again.first}, progress);
}

void Explanations::walk(Forward& forward, int prompt, Stretch positions, Progress& progress) {
  const std::vector<Stretch> stretches = passes(prompt, positions);
  const int layers = parts_.model.config().layers;
  progress.total += static_cast<std::int64_t>(stretches.size()) * layers;
  const TokenSequence sequence = parts_.sequences.sequence(prompt);
  const int head_first = parts_.plan.head_first[static_cast<std::size_t>(prompt)];
  for (const Stretch& stretch : stretches) {
    forward.pass(feed_ ? feed_->pass_over(sequence, stretch) : pass_over(sequence, stretch, head_first), prompt,
                 [&](int layer) { progress.tell(progress.done + layer, progress.total); });
    progress.done += layers;
  }
}

// As the run's, cut to these positions.
std::vector<Stretch> Explanations::passes(int prompt, Stretch positions) const {
  std::vector<Stretch> stretches;
  for (const Stretch& s : feed_ ? feed_->stretches() : parts_.sequences.stretches(prompt)) {
    const int first = std::max(s.first, positions.first), end = std::min(s.end(), positions.end());
    if (first < end) stretches.push_back({first, end - first});
  }
  return stretches;
}

// True when those behind others can be run without them: their keys and values can be given to lanes that are fed.
bool Explanations::show_caches(const std::vector<Subject>& subjects, const std::vector<bool>& active) const {
  const auto shows = [&](int lane) { return parts_.lanes[static_cast<std::size_t>(lane)].abilities().shows_caches; };
  if (parts_.lanes[static_cast<std::size_t>(oracle_)].inputs >= 0) return false;
  for (int lane = 0; lane < static_cast<int>(parts_.contract.lanes.size()); ++lane) {
    const bool is_fed = parts_.lanes[static_cast<std::size_t>(lane)].inputs >= 0;
    if (active[static_cast<std::size_t>(lane)] && !is_fed && !shows(lane)) return false;
  }
  return std::all_of(subjects.begin(), subjects.end(), [&](const Subject& s) { return shows(s.lane); });
}

// Where what is run again depends on other positions last; none where it does not.
std::optional<Site> Explanations::last_read_of_cache(const Again& again) const {
  const auto steps = steps_up_to(parts_.plan.program, again.last);
  const auto step = std::find_if(steps.rbegin(), steps.rend(), reads_cache);
  return step == steps.rend() ? std::nullopt : std::optional(site_of(*step, step->out[0]));
}

// Positions before those that were looked at matter by their keys and values only. Those that are out of line are
// looked at, too.
void Explanations::look_before(const Again& again, Forward& forward, const Examiner& examiner, Progress& progress) {
  const std::optional<Site> last = last_read_of_cache(again);
  if (again.first == 0 || !last) return;
  std::vector<Stretch> stretches;
  for (const int position : positions_out_of_line(again, examiner)) {
    if (stretches.empty() || position > stretches.back().end()) stretches.push_back({position, 0});
    ++stretches.back().count;
  }
  forward.end_after(*last);
  for (auto stretch = stretches.rbegin(); stretch != stretches.rend(); ++stretch)
    walk(forward, again.prompt, *stretch, progress);
}

// Of the lanes whose error no step explains that was seen.
std::set<int> Explanations::positions_out_of_line(const Again& again, const Examiner& examiner) const {
  std::set<int> lanes, positions;
  for (const SideBySide& sides : examiner.compared())
    if (sides.prompt == again.prompt && !saw_wrong_step(examiner, sides)) lanes.insert({sides.lane, sides.against});
  for (const Subject& s : examiner.subjects()) {
    if (s.is_fed() || lanes.count(s.lane) == 0) continue;
    const std::vector<int> off =
        out_of_line_before({again.first, again.end - again.first}, s.lane, oracle_, parts_.lanes,
                           steps_up_to(parts_.plan.program, again.last), late_rows);
    positions.insert(off.begin(), off.end());
  }
  return positions;
}

// The first rows that fail mostly show why all others do. They do not when what is wrong depends on how many rows a
// pass has, or when nothing was wrong in them: it may be in rows before, which they read keys and values of.
bool Explanations::needs_more_rows(const Examiner& examiner) const {
  return std::any_of(examiner.compared().begin(), examiner.compared().end(), [&](const SideBySide& sides) {
    if (again_.at(sides.prompt).first > 0 && !saw_wrong_step(examiner, sides)) return true;
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

}  // namespace moe_diag
