// SPDX-License-Identifier: MIT
#include "core/run/explaining.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/explain/causes.hpp"
#include "core/explain/explain.hpp"
#include "core/explain/recorded_pattern.hpp"
#include "core/plan/budget.hpp"
#include "core/plan/memory.hpp"
#include "core/report/diagnosis_text.hpp"
#include "core/report/text.hpp"

namespace moe_diag {
namespace {

std::vector<bool> explainable_by_steps(const Runner& runner) {
  std::vector<bool> falsifiers;
  for (const WatchedFalsifier& f : runner.planned().falsifiers)
    falsifiers.push_back(unexplainable(f, runner.oracle()).empty());
  return falsifiers;
}

// How much of what the run computed may be kept, beside the lanes' buffers.
std::uint64_t memory_for(const Runner& runner) {
  const std::uint64_t available = available_memory(), lanes = runner.host_bytes();
  return runner.options().explain_memory.value_or((available - std::min(available, lanes)) / 8);
}

}  // namespace

// Explaining is quicker with what the oracle computed. Taking that from a device may cost more than computing it again.
std::unique_ptr<KeptOracle> record_of_oracle(const Runner& runner) {
  const int oracle = runner.oracle();
  const Contract& contract = runner.contract();
  if (!runner.options().explain || contract.step || !obstacle_to_explaining(runner.lanes(), oracle).empty() ||
      !lockstep_lanes(runner.planned(), runner.lanes())[static_cast<std::size_t>(oracle)])
    return nullptr;
  const RunningLane& lane = runner.lane(oracle);
  if (lane.inputs >= 0 || lane.routing >= 0 || runner.planted_faults().any_in(contract.oracle) ||
      lane.description.asynchronous)
    return nullptr;
  return std::make_unique<KeptOracle>(contract, runner.planned(), runner.lanes(), explainable_by_steps(runner),
                                      memory_for(runner) / 4 * 3);
}

Explaining::Explaining(Runner& runner)
    : runner_(runner),
      explainable_(explainable_by_steps(runner)),
      record_(record_of_oracle(runner)),
      caches_(runner.program(), runner.lanes()),
      keeps_caches_(keeps_caches()) {}

// Without a record, with what lanes had in their caches. They have it still of the only prompt, unless they run alone
// after it; of several it is kept, where that takes a small part of the memory.
bool Explaining::keeps_caches() const {
  const Contract& contract = runner_.contract();
  const std::vector<WatchedFalsifier>& falsifiers = runner_.planned().falsifiers;
  const bool alone = std::any_of(falsifiers.begin(), falsifiers.end(),
                                 [](const WatchedFalsifier& f) { return is_alone(f.spec->metric); });
  if (!runner_.options().explain || contract.step || contract.oracle.empty() ||
      (contract.prompts.size() == 1 && !alone))
    return false;
  std::int64_t positions = 0;
  for (const PromptSpec& prompt : contract.prompts) positions += prompt.length();
  return caches_.bytes(positions, runner_.lockstep()) <= memory_for(runner_) / 4;
}

std::vector<Hook*> Explaining::hooks_beside(const std::vector<Hook*>& others) {
  std::vector<Hook*> hooks;
  if (record_) hooks.push_back(record_.get());
  if (runner_.oracle() < 0) return hooks;
  Bus beside;
  for (Hook* hook : others) beside.add(*hook);
  for (Hook* hook : hooks) beside.add(*hook);
  look_beside_recordings();
  if (beside_) {  // where such an oracle is not finite, the recording was not
    hooks.push_back(beside_.get());
    return hooks;
  }
  watch_ = std::make_unique<OracleWatch>(runner_.lanes(), runner_.oracle());
  watch_->look_beside(beside, static_cast<int>(runner_.contract().prompts.size()));
  hooks.push_back(watch_.get());
  return hooks;
}

// The recording that feeds the oracle, and the lanes fed by it that somebody judges.
void Explaining::look_beside_recordings() {
  const int oracle = runner_.oracle(), engine = runner_.lane(oracle).inputs;
  if (!runner_.options().explain || engine < 0 || !runner_.recordings().of(static_cast<std::size_t>(engine)) ||
      !obstacle_to_explaining(runner_.lanes(), oracle).empty())
    return;
  std::vector<Subject> subjects{{engine, engine}};
  for (const WatchedFalsifier& f : runner_.planned().falsifiers) {
    const bool is_known =
        std::any_of(subjects.begin(), subjects.end(), [&](const Subject& s) { return s.lane == f.lane; });
    if (!is_known && f.lane != oracle && runner_.lane(f.lane).inputs == engine) subjects.push_back({f.lane, f.lane});
  }
  beside_ = std::make_unique<Examiner>(
      Examiner::Parts{runner_.planned(), runner_.model(), runner_.lanes(), oracle, memory_for(runner_)},
      std::move(subjects), std::vector<SideBySide>{},
      std::vector<Stage>{runner_.model().config().stages.of(Role::layer_output)});
}

// Nothing is run again: what the engine had, and what the oracle made of it, was at hand.
void Explaining::explain_recordings(Verdict& verdict) {
  for (std::size_t f = 0; f < verdict.judgements.size(); ++f) {
    if (verdict.judgements[f].outcome != Outcome::falsified) continue;
    for (const SiteResult& site : verdict.judgements[f].sites)
      if (site.failing > 0) beside_->note_failing_span(site.first_failing, runner_.planned().falsifiers[f].lane);
  }
  name_causes(verdict, runner_.planned(), runner_.lanes(), *beside_);
  beside_->explain(leading_places(verdict));
  name_causes(verdict, runner_.planned(), runner_.lanes(), *beside_);
  const int engine = beside_->subjects().front().lane;
  const Recording& recording = *runner_.recordings().of(static_cast<std::size_t>(engine));
  const std::vector<int> requests =
      requests_of(runner_.contract(), runner_.contract().lanes[static_cast<std::size_t>(engine)], recording);
  const Program& program = runner_.program();
  verdict.failure =
      name_recorded_patterns(verdict, runner_.planned(), *beside_, engine, fit_numerics(recording, program),
                             fit_kv_cache(recording, runner_.model().config(), program));
  verdict.failure_is_usage = !verdict.failure.empty();
  for (Divergence& d : verdict.diagnosis.divergences) {
    if (d.lane != engine) continue;
    d.recorded = recorded_place(d);
    add_part(verdict, d);
    if (const std::string calls = text_of_calls(verdict, d, recording, requests); !calls.empty())
      d.text += (d.text.empty() ? "" : "; ") + calls;
  }
}

namespace {

// No other row of the site is wrong.
bool is_all_of(const PartGain& part, const Judgement& judgement) {
  return std::all_of(judgement.sites.begin(), judgement.sites.end(), [&](const SiteResult& site) {
    return !(site.site == part.site) || std::all_of(site.failing_at.begin(), site.failing_at.end(), [&](int position) {
      return part.rows.count({site.prompt, position}) > 0;
    });
  });
}

}  // namespace

// What the regression of a layer's errors says of its experts.
void Explaining::add_part(const Verdict& verdict, Divergence& d) {
  const std::string& lane = verdict.contract->lanes[static_cast<std::size_t>(d.lane)].name;
  for (const Judgement& judgement : verdict.judgements)
    for (const PartGain& part : judgement.parts) {
      if (!(part.site == d.site) || judgement.spec->lane != lane || !is_all_of(part, judgement)) continue;
      d.text = part.text + (d.text.empty() ? "" : "; " + d.text);
      if (d.expert < 0) d.expert = part.expert;
    }
}

// "layer_05/moe_ffn_out.npy, byte 4224: call 3 of 17 rows, graph"
std::string Explaining::recorded_place(const Divergence& d) const {
  const auto lane = static_cast<std::size_t>(d.lane);
  const Recording* recording = runner_.recordings().of(lane);
  if (!recording) return "";
  const int request =
      requests_of(runner_.contract(), runner_.contract().lanes[lane], *recording)[static_cast<std::size_t>(d.prompt)];
  const auto place = request < 0 ? std::nullopt : recording->place(request, d.site, d.position);
  if (!place) return "";
  std::string text = place->file + (place->tensor.empty() ? "" : ", " + place->tensor);
  text += fmt::format(", byte {}", place->offset);
  const int index = recording->call_at(request, d.position);
  if (index < 0) return text;
  const RecordedCall& call = recording->calls()[static_cast<std::size_t>(index)];
  text += fmt::format(": call {} of {}", call.number, counted(static_cast<std::size_t>(call.batch_rows), "row"));
  for (const std::string& fact : {call.mode, call.kernel})
    if (!fact.empty()) text += ", " + fact;
  return text + (call.rank >= 0 ? fmt::format(", rank {}", call.rank) : "");
}

void Explaining::end_prompt(int prompt, int positions, bool failed) {
  if (record_) record_->end(prompt, failed);
  if (keeps_caches_ && failed && !(record_ && record_->of(prompt))) caches_.keep(prompt, positions, runner_.lockstep());
}

void Explaining::end_run() {
  if (watch_) watch_->look_at_all();
}

void Explaining::explain(Verdict& verdict) {
  std::unique_ptr<KeptOracle> record = std::move(record_);  // nobody needs it afterwards
  if (verdict.count(Outcome::falsified) == 0) return;
  if (!runner_.options().explain)
    return leave_unexplained(verdict, runner_.planned(), runner_.oracle(), "causes were not asked for: --no-explain");
  const double before = runner_.seconds();
  if (beside_) {
    explain_recordings(verdict);
    verdict.timing.explain = runner_.seconds() - before;
    return;
  }
  if (make_explanations(verdict, std::move(record))) verdict.timing.explain = runner_.seconds() - before;
}

// False: nothing is explained, and the verdict says why.
bool Explaining::make_explanations(Verdict& verdict, std::unique_ptr<KeptOracle> record) {
  const RunOptions& options = runner_.options();
  const auto parts = [&] {
    return Explanations::Parts{runner_.contract(), runner_.planned(),   runner_.model(),
                               runner_.lanes(),    runner_.sequences(), caches_,
                               record.get(),       watch_.get(),        runner_.planted_faults().in(runner_.lanes())};
  };
  if (Explanations(parts(), verdict).host_bytes() > available_memory()) record.reset();
  Explanations explanations(parts(), verdict);
  std::string why_not = explanations.why_not();
  if (why_not.empty() && explanations.host_bytes() > available_memory())
    why_not = fmt::format("copies of the lanes take {} of memory, {} are available",
                          bytes_text(explanations.host_bytes()), bytes_text(available_memory()));
  if (!why_not.empty()) {
    leave_unexplained(verdict, runner_.planned(), runner_.oracle(), why_not);
    return false;
  }
  try {
    explanations.make([&](std::int64_t done, std::int64_t total) {
      if (options.progress) options.progress({"explaining", done, total, "steps"});
      if (options.interrupted && options.interrupted())
        throw Error(ErrorKind::environment, "interrupted: causes were not named");
    });
  } catch (const Error& e) {
    leave_unexplained(verdict, runner_.planned(), runner_.oracle(), e.what());
    throw;
  }
  return true;
}

void Explaining::finish(Verdict& verdict) const {
  if (watch_) tell_of_oracle(verdict, runner_.planned(), *watch_);
  const Judgement* first = verdict.first_divergence();
  if (!first || !has_stage(first->spec->metric)) return;
  // None where the explanation says that its step is right.
  if (const Divergence* own = own_divergence(verdict, *first)) {
    verdict.tensors = own->tensors;
    return;
  }
  const Cause cause = first->explanation.cause;
  const Step* step = find_step(runner_.program(), first->leading_failure()->site);
  if (!step || (cause != Cause::unexplained && cause != Cause::numerics)) return;
  for (const Weight* weight : step->weights)
    verdict.tensors.push_back(fmt::format("{} ({})", weight->name, name_of(weight->type)));
}

}  // namespace moe_diag
