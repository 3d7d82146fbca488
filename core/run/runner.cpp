// SPDX-License-Identifier: MIT
#include "core/run/runner.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>

#include "core/alone/timing.hpp"
#include "core/api/output_file.hpp"
#include "core/capture/evidence.hpp"
#include "core/explain/causes.hpp"
#include "core/explain/explain.hpp"
#include "core/plan/memory.hpp"
#include "core/report/diagnosis_text.hpp"
#include "core/verdict/controls.hpp"
#include "core/verdict/coverage.hpp"

namespace moe_diag {
namespace {

// Over the progress line, when there is one.
void warn_on_stderr(const std::string& text) {
  fmt::print(stderr, "{}moe-diag: warning: {}\n", ::isatty(STDERR_FILENO) ? "\r\033[K" : "", text);
}

}  // namespace

Runner::Runner(const Contract& contract, PluginHost& host, const RunOptions& options)
    : contract_(contract), host_(host), options_(options) {
  verdict_.contract = &contract;
  verdict_.started = std::time(nullptr);
  for (const FaultSpec& fault : contract.planted) planted_.push_back({contract.at(fault.where), fault});
  for (const FaultSpec& fault : options.inject) {
    planted_.push_back({"--inject", fault});
    verdict_.injected.push_back(flow_text(fault));
  }
  for (const auto& [place, fault] : planted_)
    verdict_.planted.push_back(fmt::format("{}, lane {}", fault.text, fault.lane));
}

double Runner::seconds() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
}

void Runner::open_lanes() {
  describe_lanes();
  const std::vector<bool> opened = lanes_to_open();
  check_memory(opened);
  check_max_bytes();
  check_free_space(outputs_of(*capture_, plan_.captures));
  if (options_.progress) options_.progress({"opening the lanes"});
  lanes_->open(opened);
  lockstep_ = lockstep_lanes(plan_, *lanes_);
  check_planted();
  for (std::size_t i = 0; i < lanes_->size(); ++i) verdict_.lanes[i] = lane_report(i);
  judge_ = std::make_unique<Judge>(plan_, *lanes_);
  sequences_ = std::make_unique<Sequences>(contract_, plan_.chooser);
  note_absent_lanes(plan_.captures);
}

void Runner::note_absent_lanes(const std::vector<WatchedCapture>& captures) {
  for (const WatchedCapture& capture : captures)
    for (int i : capture.lanes)
      if (const RunningLane& lane = (*lanes_)[static_cast<std::size_t>(i)]; !lane.runs())
        verdict_.captured_nothing.push_back(
            {fmt::format("{}: lane '{}' is absent: {}", contract_.at(capture.spec->where), lane.name, lane.absent),
             lane.name, false, capture.spec->where.line});
}

void Runner::claim_output() {
  if (options_.out.empty()) return;
  claim_folder(options_.out, "--out");
}

void Runner::open_sinks() {
  note_sink_outputs(outputs_of(*capture_, plan_.captures));
  open_sinks(*capture_);
}

void Runner::open_sinks(Capture& capture) {
  if (!capture.has_sinks()) return;
  if (options_.out.empty()) throw Error(ErrorKind::usage, "the contract has sinks: an output folder is needed");
  prompt_infos_.clear();
  lane_infos_.clear();
  RunInfo info;
  for (const PromptSpec& p : contract_.prompts)
    prompt_infos_.push_back({p.id, sequences_->tokens(static_cast<int>(prompt_infos_.size())), p.generate});
  for (const LaneReport& l : verdict_.lanes) {
    const RunningLane& lane = (*lanes_)[lane_infos_.size()];
    lane_infos_.push_back({l.name, l.backend, l.numerics, l.device, l.instruction_set, lane.description.values,
                           lane.runs(), lane.description.storage, &info.model});
  }
  info.contract = contract_.metadata.id;
  info.contract_version = contract_.metadata.version;
  info.tool_version = options_.tool_version;
  info.out = options_.out;
  info.overwrite = overwrite_;
  info.model = {model_->source(), model_->bytes(), &digest_for_sinks_, model_->config()};
  info.prompts = prompt_infos_;
  info.lanes = lane_infos_;
  planted_infos_.assign(verdict_.planted.begin(), verdict_.planted.end());
  info.planted = planted_infos_;
  capture.open(info, options_.interrupted, {options_.slow_call, options_.warn ? options_.warn : warn_on_stderr});
}

std::vector<PlantedFault> Runner::planted() const {
  std::vector<PlantedFault> faults;
  for (const auto& [place, fault] : planted_) faults.push_back({lanes_->index_of(fault.lane), fault});
  return faults;
}

const std::string& Runner::model_digest() const {
  DigestProgress progress;
  if (options_.progress && !computes_)
    progress = [this](std::uint64_t done, std::uint64_t total) {
      options_.progress({"digest of the model", static_cast<std::int64_t>(done >> 20),
                         static_cast<std::int64_t>(total >> 20), "MiB"});
    };
  return model_->digest(options_.interrupted, progress);
}

// For the verdict, which says what it is of. A capture without falsifiers has none.
void Runner::finish_digest() {
  if (contract_.falsifiers.empty()) return;
  const double before = seconds();
  model_digest();
  verdict_.timing.digest += seconds() - before;
}

void Runner::finish_digest_after_failure() {
  try {
    finish_digest();
  } catch (const Error&) {  // interrupted: the verdict has the sampled one, and says so
  }
}

void Runner::forward() {
  verdict_.timing.open = seconds();
  model_->begin_digest();
  stop_without_oracle();
  std::vector<Hook*> hooks = call_witnesses();
  const int oracle = lanes_->index_of(contract_.oracle);
  Coverage coverage(plan_, model_->config(), oracle >= 0 && lockstep_[static_cast<std::size_t>(oracle)] ? oracle : -1);
  hooks.insert(hooks.end(), {judge_.get(), capture_.get(), sequences_.get(), &coverage});
  record_ = kept_oracle();
  if (record_) hooks.push_back(record_.get());
  kept_ = std::make_unique<KeptCaches>(plan_.program, *lanes_);
  Bus others;
  for (Hook* hook : hooks) others.add(*hook);
  if (oracle >= 0) {
    oracle_watch_ = std::make_unique<OracleWatch>(*lanes_, oracle);
    oracle_watch_->look_beside(others, static_cast<int>(contract_.prompts.size()));
    hooks.push_back(oracle_watch_.get());
  }
  const bool keeps = keeps_caches();
  const std::vector<bool> falsifiers = explainable();
  const std::vector<std::int64_t> changed = walk(hooks, planted(), lockstep_, "", [&](int prompt, int positions) {
    const bool is_needed = judge_->saw_failing(prompt, falsifiers);
    if (record_) record_->end(prompt, is_needed);
    if (keeps && is_needed && !(record_ && record_->of(prompt))) kept_->keep(prompt, positions, lockstep_);
  });
  if (oracle_watch_) oracle_watch_->look_at_all();
  note_ends();
  for (std::size_t f = 0; f < changed.size(); ++f) {
    const RunningLane& lane = (*lanes_)[static_cast<std::size_t>(lanes_->index_of(planted_[f].second.lane))];
    if (changed[f] == 0 && lane.runs()) planted_in_vain_.push_back(verdict_.planted[f]);
  }
  verdict_.judgements = judge_->judgements();
  verdict_.coverage = coverage.layers();
  verdict_.timing.forward = seconds() - verdict_.timing.open;
}

std::vector<bool> Runner::explainable() const {
  const int oracle = lanes_->index_of(contract_.oracle);
  std::vector<bool> falsifiers;
  for (const WatchedFalsifier& f : plan_.falsifiers) falsifiers.push_back(unexplainable(f, oracle).empty());
  return falsifiers;
}

// How much of what the run computed may be kept for explaining, beside the lanes' buffers.
std::uint64_t Runner::explain_memory() const {
  const std::uint64_t available = available_memory(), lanes = host_bytes(lanes_to_open());
  return options_.explain_memory.value_or((available - std::min(available, lanes)) / 8);
}

// Explaining is quicker with what the oracle computed. Taking that from a device may cost more than computing it again.
std::unique_ptr<KeptOracle> Runner::kept_oracle() const {
  const int oracle = lanes_->index_of(contract_.oracle);
  if (!options_.explain || contract_.step || !obstacle_to_explaining(*lanes_, oracle).empty() ||
      !lockstep_lanes(plan_, *lanes_)[static_cast<std::size_t>(oracle)])
    return nullptr;
  const RunningLane& lane = (*lanes_)[static_cast<std::size_t>(oracle)];
  const bool has_faults = std::any_of(planted_.begin(), planted_.end(),
                                      [&](const auto& fault) { return fault.second.lane == contract_.oracle; });
  if (lane.inputs >= 0 || lane.routing >= 0 || has_faults || lane.description.asynchronous) return nullptr;
  return std::make_unique<KeptOracle>(contract_, plan_, *lanes_, explainable(), explain_memory() / 4 * 3);
}

// Without that, with what lanes had in their caches. They have it still of the only prompt, unless they run alone after
// it; of several it is kept, where that takes a small part of the memory.
bool Runner::keeps_caches() const {
  const bool alone = std::any_of(plan_.falsifiers.begin(), plan_.falsifiers.end(),
                                 [](const WatchedFalsifier& f) { return is_alone(f.spec->metric); });
  if (!options_.explain || contract_.step || contract_.oracle.empty() || (contract_.prompts.size() == 1 && !alone))
    return false;
  std::int64_t positions = 0;
  for (const PromptSpec& prompt : contract_.prompts) positions += prompt.length();
  return kept_->bytes(positions, lockstep_) <= explain_memory() / 4;
}

// A prompt that the oracle is to continue ends where the oracle is absent.
void Runner::stop_without_oracle() {
  if (plan_.chooser < 0) return;
  const RunningLane& oracle = (*lanes_)[static_cast<std::size_t>(plan_.chooser)];
  for (int p = 0; p < static_cast<int>(contract_.prompts.size()); ++p)
    if (!oracle.runs()) sequences_->stop(p, fmt::format("the oracle '{}' is absent: {}", oracle.name, oracle.absent));
}

AloneParts Runner::alone_parts() { return {contract_, plan_, *model_, host_, *lanes_, *sequences_, digest_files_}; }

// Those who keep what the lockstep run computes, to be compared later.
std::vector<Hook*> Runner::call_witnesses() {
  const AloneParts parts = alone_parts();
  std::vector<Hook*> hooks;
  for (std::size_t f = 0; f < plan_.falsifiers.size(); ++f) {
    const WatchedFalsifier& watched = plan_.falsifiers[f];
    const bool runs = (*lanes_)[static_cast<std::size_t>(watched.lane)].runs();
    witnesses_.push_back(runs && watched.spec->metric == Metric::identical ? Identity(parts, f).witness() : nullptr);
    if (witnesses_.back()) hooks.push_back(witnesses_.back().get());
  }
  return hooks;
}

void Runner::judge_alone() {
  const double before = seconds();
  const AloneParts parts = alone_parts();
  const auto is_mine = [&](const WatchedFalsifier& f) {
    return is_alone(f.spec->metric) && (*lanes_)[static_cast<std::size_t>(f.lane)].runs();
  };
  for (std::size_t f = 0; f < plan_.falsifiers.size(); ++f)
    if (is_mine(plan_.falsifiers[f])) verdict_.judgements[f].reason = "the run ended before it was judged";
  for (std::size_t f = 0; f < plan_.falsifiers.size(); ++f) {
    if (!is_mine(plan_.falsifiers[f])) continue;
    if (plan_.falsifiers[f].spec->metric != Metric::identical) finish_digest();  // which would be in the timing's way
    if (options_.interrupted && options_.interrupted())
      throw Error(ErrorKind::environment, fmt::format("interrupted: {} was not judged", plan_.falsifiers[f].spec->id));
    if (options_.progress)
      options_.progress({fmt::format("{} alone", plan_.falsifiers[f].spec->id), static_cast<std::int64_t>(f),
                         static_cast<std::int64_t>(plan_.falsifiers.size()), "claims"});
    const double start = seconds();
    verdict_.judgements[f] = plan_.falsifiers[f].spec->metric == Metric::identical
                                 ? Identity(parts, f).judge(witnesses_[f].get()).judgement
                                 : judge_timing(parts, f);
    (*lanes_)[static_cast<std::size_t>(plan_.falsifiers[f].lane)].forget_caches();
    verdict_.judgements[f].seconds = seconds() - start;
  }
  verdict_.timing.solo = seconds() - before;
}

Digests Runner::digests() {
  for (std::size_t i = 0; i < lanes_->size(); ++i)
    if (lockstep_[i] && !(*lanes_)[i].runs())
      throw Error(ErrorKind::absent, fmt::format("lane '{}' is absent: {}", (*lanes_)[i].name, (*lanes_)[i].absent));
  std::vector<Hook*> hooks = call_witnesses();
  hooks.push_back(sequences_.get());
  model_->begin_digest();
  walk(hooks, planted(), lockstep_, "");
  for (int p = 0; p < static_cast<int>(contract_.prompts.size()); ++p)
    if (!sequences_->stopped(p).empty()) throw Error(ErrorKind::environment, sequences_->stopped(p));
  Digests digests;
  digests.tool_version = options_.tool_version;
  digests.model_source = model_->source();
  digests.model_digest = model_digest();
  for (std::size_t f = 0; f < witnesses_.size(); ++f)
    if (witnesses_[f]) add_digests(alone_parts(), f, *witnesses_[f], digests);
  return digests;
}

std::vector<std::int64_t> Runner::walk(const std::vector<Hook*>& hooks, std::vector<PlantedFault> faults,
                                       const std::vector<bool>& active, const std::string& what,
                                       const AfterPrompt& after_prompt) {
  Bus bus;
  for (Hook* hook : hooks) bus.add(*hook);
  std::optional<GivenInputs> feed;
  if (contract_.step) feed.emplace(*contract_.step, plan_.program.front(), model_->config());
  Forward forward(*lanes_, bus, std::move(faults), active, feed ? &*feed : nullptr);
  const int layers = model_->config().layers;
  const auto count = static_cast<int>(contract_.prompts.size());
  std::int64_t done = 0, total = 0;  // passes
  computes_ = true;
  const auto stretches = [&](const PromptSpec& prompt) { return feed ? feed->stretches() : stretches_of(prompt); };
  for (const PromptSpec& prompt : contract_.prompts) total += static_cast<std::int64_t>(stretches(prompt).size());
  for (int p = 0; p < count; ++p) {
    if (!bus.looks_at(p, *lanes_)) continue;
    const PromptSpec& prompt = contract_.prompts[static_cast<std::size_t>(p)];
    int end = 0;
    const std::string now = what.empty() ? fmt::format("prompt {}", prompt.id) : what;
    for (const Stretch& stretch : stretches(prompt)) {
      const auto at_layer = [&](int layer) {
        if (options_.progress) options_.progress({now, done * layers + layer, total * layers});
        if (options_.interrupted && options_.interrupted())
          throw Error(ErrorKind::environment, "interrupted: " + now + " was not finished");
      };
      if (stretch.end() <= sequences_->known(p)) {
        end = stretch.end();
        forward.pass(feed ? feed->pass_over(sequences_->sequence(p), stretch)
                          : pass_over(sequences_->sequence(p), stretch, plan_.head_first[static_cast<std::size_t>(p)]),
                     p, options_.progress || options_.interrupted ? std::function<void(int)>(at_layer) : nullptr);
      }
      ++done;
    }
    if (after_prompt && end > 0) after_prompt(p, end);
  }
  computes_ = false;
  return forward.changed();
}

// What lies behind the end of a sequence that could not go on was neither judged nor captured.
void Runner::note_ends() {
  for (int p = 0; p < static_cast<int>(contract_.prompts.size()); ++p) {
    const std::string& why = sequences_->stopped(p);
    if (why.empty()) continue;
    judge_->note_end(p, sequences_->known(p), why);
    for (const WatchedCapture& capture : plan_.captures)
      if (const auto& positions = capture.positions[static_cast<std::size_t>(p)];
          !positions.empty() && positions.back() >= sequences_->known(p))
        verdict_.captured_nothing.push_back(
            {fmt::format("{}: {}", contract_.at(capture.spec->where), why), "", false, capture.spec->where.line});
  }
}

void Runner::show_to(Hook& hook) { walk({&hook, sequences_.get()}, planted(), lockstep_, "what a step reads"); }

void Runner::close_sinks() {
  capture_->close();
  verdict_.outputs = capture_->completed();
}

void Runner::capture_evidence() {
  const double before = seconds();
  const std::vector<WatchedCapture> captures = evidence_of(plan_, verdict_.judgements, plan_.program, model_->config());
  if (captures.empty()) return;
  evidence_ = std::make_unique<Capture>(contract_, captures, host_);
  note_absent_lanes(plan_.evidence);
  const std::vector<PlannedOutput> outputs = outputs_of(*evidence_, captures);
  check_max_bytes(outputs);
  check_free_space(outputs);
  note_sink_outputs(outputs);
  open_sinks(*evidence_);
  walk({evidence_.get()}, planted(), lanes_needed_by(captures, *lanes_), "evidence");
  evidence_->close();
  verdict_.outputs.insert(verdict_.outputs.end(), evidence_->completed().begin(), evidence_->completed().end());
  verdict_.timing.evidence = seconds() - before;
}

void Runner::explain() {
  std::unique_ptr<KeptOracle> record = std::move(record_);  // nobody needs it afterwards
  if (verdict_.count(Outcome::falsified) == 0) return;
  const int oracle = lanes_->index_of(contract_.oracle);
  if (!options_.explain) return leave_unexplained(verdict_, plan_, oracle, "causes were not asked for: --no-explain");
  const double before = seconds();
  const auto parts = [&] {
    return Explanations::Parts{contract_,           plan_,    *model_, *lanes_, *sequences_, *kept_, record.get(),
                               oracle_watch_.get(), planted()};
  };
  if (Explanations(parts(), verdict_).host_bytes() > available_memory()) record.reset();
  Explanations explanations(parts(), verdict_);
  std::string why_not = explanations.why_not();
  if (why_not.empty() && explanations.host_bytes() > available_memory())
    why_not = fmt::format("copies of the lanes take {} of memory, {} are available",
                          bytes_text(explanations.host_bytes()), bytes_text(available_memory()));
  if (!why_not.empty()) return leave_unexplained(verdict_, plan_, oracle, why_not);
  try {
    explanations.make([&](std::int64_t done, std::int64_t total) {
      if (options_.progress) options_.progress({"explaining", done, total, "steps"});
      if (options_.interrupted && options_.interrupted())
        throw Error(ErrorKind::environment, "interrupted: causes were not named");
    });
  } catch (const Error& e) {
    leave_unexplained(verdict_, plan_, oracle, e.what());
    throw;
  }
  verdict_.timing.explain = seconds() - before;
}

void Runner::run_controls() {
  const double before = seconds();
  verdict_.controls = true;
  for (std::size_t f = 0; f < plan_.falsifiers.size(); ++f) {
    Judgement& judgement = verdict_.judgements[f];
    if (judgement.outcome != Outcome::held) continue;
    for (const FaultSpec& fault : judgement.spec->controls) {
      const double start = seconds();
      judgement.controls.push_back(run_control(f, fault));
      judgement.seconds += seconds() - start;
      const ControlResult& result = judgement.controls.back();
      if (result.tripped) continue;
      judgement.outcome = Outcome::vacuous;
      if (judgement.reason.empty()) judgement.reason = fmt::format("control '{}': {}", result.fault, result.message);
    }
  }
  verdict_.timing.controls = seconds() - before;
}

ControlResult Runner::run_control(std::size_t falsifier, const FaultSpec& fault) {
  const WatchedFalsifier& watched = plan_.falsifiers[falsifier];
  const RunningLane& lane = (*lanes_)[static_cast<std::size_t>(watched.lane)];
  const std::optional<Site> expected = expected_site(watched, fault, lane, plan_.program);
  if (is_alone(watched.spec->metric)) {
    const AloneJudgement judged = judge_alone_control(falsifier, fault);
    return judge_control(judged.judgement, fault, expected, judged.changed);
  }
  Judge judge(plan_, *lanes_, static_cast<int>(falsifier));
  const std::vector<std::int64_t> changed = walk({&judge}, {{watched.lane, fault}}, lanes_needed_by(watched, *lanes_),
                                                 fmt::format("control of {}", watched.spec->id));
  return judge_control(judge.judgements()[falsifier], fault, expected, changed.front());
}

// The fault is in the lockstep run where that is compared, else in every pass of the lane alone but the first.
AloneJudgement Runner::judge_alone_control(std::size_t falsifier, const FaultSpec& fault) {
  const AloneParts parts = alone_parts();
  const Identity identity(parts, falsifier);
  const std::unique_ptr<SeenRows> witness = identity.witness();
  if (!witness) return identity.judge(nullptr, &fault);
  const WatchedFalsifier& watched = plan_.falsifiers[falsifier];
  const std::vector<std::int64_t> changed =
      walk({witness.get()}, {{watched.lane, fault}}, lanes_needed_by(watched, *lanes_),
           fmt::format("control of {}", watched.spec->id));
  AloneJudgement judged = identity.judge(witness.get());
  judged.changed = changed.front();
  return judged;
}

// What was judged stands where it is already decided: a falsified claim stays falsified whatever would have followed.
void Runner::fail(const Error& error) {
  verdict_.failure = error.what();
  verdict_.failure_is_usage = error.kind() == ErrorKind::usage;
  if (verdict_.timing.forward == 0) verdict_.timing.forward = seconds() - verdict_.timing.open;
  if (!options_.interrupted || !options_.interrupted()) finish_digest_after_failure();
  if (!verdict_.judgements.empty()) return;
  verdict_.judgements = judge_->judgements();
  for (Judgement& j : verdict_.judgements) {
    if (j.outcome != Outcome::held) continue;
    j.outcome = Outcome::untested;
    j.reason = fmt::format("not all of it was judged: {}", error.what());
  }
}

Verdict Runner::verdict() {
  for (const std::string& fault : planted_in_vain_) {
    verdict_.failure = fmt::format(
        "fault '{}' changed nothing: it was planted where nothing is computed, or makes no difference there", fault);
    verdict_.failure_is_usage = true;
  }
  if (oracle_watch_) tell_of_oracle(verdict_, plan_, *oracle_watch_);
  name_tensors();
  report_prompts();
  if (model_) verdict_.model.digest = model_->digest_so_far();
  verdict_.timing.total = seconds();
  return std::move(verdict_);
}

// The weights that the first divergence is about: none where the explanation says that its step is right.
void Runner::name_tensors() {
  const Judgement* first = verdict_.first_divergence();
  if (!first || !has_stage(first->spec->metric)) return;
  if (const Divergence* own = own_divergence(verdict_, *first)) {
    verdict_.tensors = own->tensors;
    return;
  }
  const Cause cause = first->explanation.cause;
  const Step* step = find_step(plan_.program, first->leading_failure()->site);
  if (!step || (cause != Cause::unexplained && cause != Cause::numerics)) return;
  for (const Weight* weight : step->weights)
    verdict_.tensors.push_back(fmt::format("{} ({})", weight->name, name_of(weight->type)));
}

void Runner::report_prompts() {
  const Vocabulary vocabulary = model_ ? model_->vocabulary() : Vocabulary();
  for (const PromptSpec& prompt : contract_.prompts) {
    const auto p = static_cast<int>(verdict_.prompts.size());
    PromptReport& report = verdict_.prompts.emplace_back();
    report.tokens = prompt.tokens;
    if (sequences_) {
      const auto known = sequences_->tokens(p).first(static_cast<std::size_t>(sequences_->known(p)));
      report.tokens.assign(known.begin(), known.end());
      report.stopped = sequences_->stopped(p);
    }
    report.generated = static_cast<int>(report.tokens.size() - prompt.tokens.size());
    if (vocabulary.empty()) continue;
    for (std::int32_t token : report.tokens) report.texts.push_back(vocabulary.quoted_text(token));
  }
}

Verdict Runner::untested() {
  for (const FalsifierSpec& spec : contract_.falsifiers) {
    Judgement j;
    j.spec = &spec;
    j.reason = "the model is absent: " + verdict_.model.absent;
    verdict_.judgements.push_back(std::move(j));
  }
  if (std::any_of(contract_.capture.begin(), contract_.capture.end(),
                  [](const CaptureSpec& c) { return c.when == CaptureSpec::When::always; }))
    verdict_.captured_nothing.push_back(
        {"the model is absent: " + verdict_.model.absent, "", false, contract_.model.where.line});
  return verdict();
}

}  // namespace moe_diag
