// SPDX-License-Identifier: MIT
#include "core/repro/repro.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "core/compare/explain_step.hpp"
#include "core/contract/metric.hpp"
#include "core/explain/examiner.hpp"
#include "core/repro/case_writer.hpp"
#include "core/repro/kernel_case.hpp"
#include "core/run/call_files.hpp"
#include "core/run/open_model.hpp"
#include "core/run/runner.hpp"
#include "core/text/nearest.hpp"
#include "core/text/quote.hpp"
#include "core/verdict/controls.hpp"

namespace moe_diag {
namespace {

[[noreturn]] void refuse(const std::string& what) { throw Error(ErrorKind::usage, what); }

const EarlierFalsifier& falsifier_of(const EarlierVerdict& verdict, const std::string& id) {
  std::vector<std::string> ids;
  for (const EarlierFalsifier& f : verdict.falsifiers) ids.push_back(f.id);
  if (id.empty() && verdict.first_divergence.empty())
    refuse(fmt::format("{}: nothing in it is falsified at a step, so there is no step to reproduce", verdict.path));
  const std::string& wanted = id.empty() ? verdict.first_divergence : id;
  const auto at = std::find(ids.begin(), ids.end(), wanted);
  if (at == ids.end()) refuse(fmt::format("{}: {}", verdict.path, unknown("falsifier", wanted, ids)));
  const EarlierFalsifier& falsifier = verdict.falsifiers[static_cast<std::size_t>(at - ids.begin())];
  if (falsifier.outcome != "falsified")
    refuse(fmt::format("{}: {} is {}, not falsified: there is nothing to reproduce", verdict.path, falsifier.id,
                       falsifier.outcome));
  if (!falsifier.first_failing || falsifier.first_failing->position < 0)
    refuse(fmt::format("{}: {} speaks of whole passes, and not of a step that could be run alone", verdict.path,
                       falsifier.id));
  return falsifier;
}

// The contract as it was run, checked to be the same.
Contract contract_of(const EarlierVerdict& verdict) {
  Contract contract = read_contract(verdict.contract, verdict.overrides);
  if (contract.digest != verdict.contract_digest)
    refuse(fmt::format("{}: the contract has changed since {} was written (digest {} then, {} now): run it again",
                       verdict.contract, verdict.path, verdict.contract_digest, contract.digest));
  if (contract.step) refuse(fmt::format("{}: the contract is one step alone already", verdict.contract));
  resolve_recordings(contract, nullptr);
  for (const std::string& text : verdict.injected) contract.planted.push_back(parse_fault(text, contract));
  contract.capture.clear();
  contract.sinks.clear();
  return contract;
}

// The lanes that a lane takes anything from, itself first.
void add_feeders(const Contract& contract, const std::string& name, std::vector<std::string>& names) {
  if (name.empty() || std::count(names.begin(), names.end(), name) > 0) return;
  names.push_back(name);
  for (const LaneSpec& lane : contract.lanes)
    if (lane.name == name) {
      add_feeders(contract, lane.inputs, names);
      add_feeders(contract, lane.routing, names);
      add_feeders(contract, lane.base, names);
    }
}

class Reproduction {
 public:
  Reproduction(const EarlierVerdict& verdict, PluginHost& host, const ReproOptions& options)
      : verdict_(verdict),
        host_(host),
        options_(options),
        falsifier_(falsifier_of(verdict, options.falsifier)),
        contract_(contract_of(verdict)),
        claim_(claim_of_contract()),
        is_fed_(takes_inputs()),
        follows_(falsifier_.divergence && (!is_fed_ || falsifier_.divergence->lane != claim_.lane)) {}

  Repro make() {
    if (const std::string why = why_every_step_is_right(); !why.empty()) return {false, why};
    choose_step();
    CallFiles files;
    files.read("the verdict", verdict_.path);
    files.read(contract_);
    files.write_folder("--out", options_.out);
    // A recording computes nothing: what it wrote is judged as a kernel's output is.
    const bool as_kernel = options_.cases || lane_spec(lane_).replay;
    std::optional<CaseFolder> folder;  // refused before anything is run
    if (!as_kernel) folder.emplace(options_.out, options_.overwrite);
    const std::string other = claim_.against;
    watch(other);
    Runner runner(contract_, host_, options_.run);
    open(runner, other);
    const SeenStep seen = seen_by(runner, other);
    if (as_kernel)
      return write_kernel_case({runner.model(), contract_, seen, lane_spec(lane_),
                                runner.lane(lane_).description.numerics, where_.site, where_.position},
                               options_);
    return write({verdict_, falsifier_, contract_, runner.model(), runner.program(), runner.sequences(), seen, lane_,
                  where_, claims(runner), options_.run},
                 *folder);
  }

 private:
  Repro write(const CaseWriter::Parts& parts, CaseFolder& folder) {
    CaseWriter writer(parts, host_, folder);
    if (!writer.write()) return {false, why_it_holds(writer)};
    const std::string summary = writer.summary(options_.out);
    folder.put_in_place();
    return {true, summary};
  }

  FalsifierSpec claim_of_contract() const {
    for (const FalsifierSpec& spec : contract_.falsifiers) {
      if (spec.id != falsifier_.id) continue;
      if (is_alone(spec.metric))
        refuse(fmt::format("{}: {} is about '{}', which is of passes and not of a step that could be run alone",
                           verdict_.path, spec.id, name_of(spec.metric)));
      return spec;
    }
    refuse(fmt::format("{}: the contract has no falsifier {}", verdict_.contract, falsifier_.id));
  }

  LaneSpec& lane_spec(const std::string& name) {
    for (LaneSpec& lane : contract_.lanes)
      if (lane.name == name) return lane;
    refuse(fmt::format("{}: \"lane\": the contract has no lane '{}'", verdict_.path, shown(name)));
  }

  bool takes_inputs() const {
    return std::any_of(contract_.lanes.begin(), contract_.lanes.end(),
                       [&](const LaneSpec& l) { return l.name == claim_.lane && !l.inputs.empty(); });
  }

  // Where the verdict says so.
  std::string why_every_step_is_right() const {
    const std::string cause = follows_ ? falsifier_.divergence->cause : falsifier_.cause;
    if (cause == "oracle_not_finite")
      return fmt::format(
          "the oracle itself is not finite where {} fails, so no step of lane '{}' can be held against "
          "it: mend the model or its file first (moe-diag inspect MODEL --weights)\n",
          falsifier_.id, claim_.lane);
    if (is_fed_ || (cause != "drift" && cause != "routing_tie" && cause != "routing_drift")) return "";
    return fmt::format("every step of lane '{}' is right alone: {}{}{}\n", claim_.lane, cause,
                       falsifier_.why.empty() ? "" : ": ", falsifier_.why);
  }

  Site site_of(const EarlierSite& site) const {
    const Stage stage = contract_.stages.find(site.stage);
    if (!stage)
      refuse(fmt::format("{}: \"stage\": there is no stage '{}' in the model", verdict_.path, shown(site.stage)));
    return {stage, site.layer};
  }

  // A lane that runs freely fails where errors show, not always where they are made: the verdict knows that step, which
  // is then computed on the oracle's inputs, as it was when it was found.
  void choose_step() {
    const EarlierSample& failing = *falsifier_.first_failing;
    lane_ = claim_.lane;
    std::string prompt = failing.prompt;
    where_.position = failing.position;
    where_.site = site_of(failing.site);
    if (follows_) {
      const EarlierDivergence& d = *falsifier_.divergence;
      own_claim_ = d.lane == claim_.lane && d.site.stage == failing.site.stage && d.site.layer == failing.site.layer;
      lane_ = d.lane;
      prompt = d.prompt;
      where_.position = d.position;
      where_.site = site_of(d.site);
      LaneSpec& lane = lane_spec(lane_);
      if (!lane.replay) lane.inputs = contract_.oracle;  // a recording stands on inputs of its own
      lane.routing.clear();
      if (!own_claim_) claim_.against = contract_.oracle;
    }
    lane_spec(lane_);
    from_ = prompt;
    const auto at = std::find_if(contract_.prompts.begin(), contract_.prompts.end(),
                                 [&](const PromptSpec& p) { return p.id == prompt; });
    if (at == contract_.prompts.end())
      refuse(fmt::format("{}: \"prompt\": the contract has no prompt '{}'", verdict_.path, shown(prompt)));
    where_.prompt = static_cast<int>(at - contract_.prompts.begin());
    if (where_.position >= at->length())
      refuse(fmt::format("{}: \"position\" is {}, the prompt '{}' has {}", verdict_.path, where_.position, prompt,
                         at->length()));
  }

  // All that is run is the lane and the one it is compared with, looked at where the step is.
  void watch(const std::string& other) {
    FalsifierSpec look = claim_;
    look.lane = lane_;
    look.against = other == lane_ ? "" : other;
    look.metric = Metric::nonfinite;
    look.stages.stages = {where_.site.stage};
    look.layers = IndexSelection::all();
    look.positions = IndexSelection::parse(std::to_string(where_.position), false);
    look.prompts = {from_};
    look.per_stage.clear();
    look.per_type.clear();
    look.controls.clear();
    look.floor.clear();
    contract_.falsifiers = {look};
    const bool generates = std::any_of(contract_.prompts.begin(), contract_.prompts.end(),
                                       [](const PromptSpec& p) { return p.generate > 0; });
    std::vector<std::string> names;
    for (const std::string& name : {lane_, other, generates ? contract_.oracle : ""})
      add_feeders(contract_, name, names);
    auto& planted = contract_.planted;
    planted.erase(
        std::remove_if(planted.begin(), planted.end(),
                       [&](const FaultSpec& f) { return std::count(names.begin(), names.end(), f.lane) == 0; }),
        planted.end());
  }

  void open(Runner& runner, const std::string& other) {
    if (!runner.open_model()) throw Error(ErrorKind::absent, runner.absences().front());
    if (verdict_.model_digest.starts_with("sampled"))
      refuse(
          fmt::format("{}: the run was interrupted before the model was digested to its end, so it is not known "
                      "which model it was (digest {}): run the contract again",
                      verdict_.path, verdict_.model_digest));
    if (const std::string& digest = runner.model_digest(); digest != verdict_.model_digest)
      refuse(fmt::format("{}: this is not the model of {} (digest {} then, {} now): run the contract again",
                         runner.model().source(), verdict_.path, verdict_.model_digest, digest));
    runner.plan();
    runner.open_lanes();
    for (const std::string& name : {lane_, other}) {
      if (name.empty()) continue;
      const RunningLane& lane = runner.lane(name);
      if (!lane.runs()) throw Error(ErrorKind::absent, fmt::format("lane '{}' is absent: {}", name, lane.absent));
    }
  }

  void refuse_steps_at_once(const Runner& runner) const {
    const Step& step = *find_step(runner.program(), where_.site);
    const std::span<const Step> all =
        runner.lanes()[static_cast<std::size_t>(where_.lane)].steps_with(where_.site, step);
    if (all.size() > 1)
      refuse(
          fmt::format("one kernel of lane '{0}' computes {1} to {2}, and a case is one step: `moe-diag cases MODEL "
                      "--span {1}..{2} --layers {3} --out DIR` writes what the kernel reads and should give",
                      lane_, name_of(all.front().out[0]), name_of(all.back().out[0]), where_.site.layer));
  }

  SeenStep seen_by(Runner& runner, const std::string& other) {
    where_.lane = runner.lanes().index_of(lane_);
    where_.other = other == lane_ ? -1 : runner.lanes().index_of(other);
    if (!find_step(runner.program(), where_.site))
      refuse(fmt::format("{}: the model has no {}", verdict_.path, text_of(where_.site)));
    refuse_steps_at_once(runner);
    StepWatcher watcher(runner.program(), where_);
    runner.show_to(watcher);
    if (watcher.seen().count == 0)
      refuse(
          fmt::format("{}: prompt '{}', position {} of {} was not computed now, or lane '{}' does not have it: run "
                      "the contract again",
                      verdict_.path, from_, where_.position, text_of(where_.site), lane_));
    return watcher.seen();
  }

  // What the case has to break.
  std::vector<FalsifierSpec> claims(const Runner& runner) const {
    std::vector<FalsifierSpec> claims;
    if (own_claim_) {
      claims.push_back(claim_);
      claims.back().bound = falsifier_.first_failing->bound;
    }
    if (!follows_) return claims;
    FalsifierSpec step;
    step.id = "STEP";
    step.lane = lane_;
    step.against = contract_.oracle;
    step.claim = fmt::format("the step errs by no more than {} times what its numerics have to", failing_error);
    step.metric = Metric::noise_ratio;
    step.bound = {Bound::Kind::at_most, failing_error};
    if (payload_of(where_.site.stage) == Payload::indices) {
      step.claim = "experts are chosen as the router's logits say";
      step.metric = Metric::routing_real_flips;
      step.bound = {Bound::Kind::equals, 0};
    } else if (falsifier_.divergence->cause == "nonfinite_origin" ||
               !has_expected_error(runner.lane(lane_), runner.program(), runner.model().config())) {
      step.claim = "what is computed from finite values is finite";
      step.metric = Metric::nonfinite_beyond;
      step.bound = {Bound::Kind::equals, 0};
    }
    claims.push_back(step);
    return claims;
  }

  std::string why_it_holds(const CaseWriter& writer) const {
    std::string text = fmt::format(
        "{} of lane '{}' is right when it is computed alone, from what it read at position "
        "{} of prompt '{}':\n{}",
        text_of(where_.site), lane_, where_.position, from_, writer.what_held());
    if (falsifier_.cause == "unexplained")
      text += fmt::format("the verdict does not say which step is at fault{}{}\n", falsifier_.why.empty() ? "" : ": ",
                          falsifier_.why);
    return text;
  }

  const EarlierVerdict& verdict_;
  PluginHost& host_;
  const ReproOptions& options_;
  const EarlierFalsifier& falsifier_;
  Contract contract_;
  FalsifierSpec claim_;  // the contract's
  const bool is_fed_;    // its lane is, in the contract
  const bool follows_;   // the step is one that the verdict names, elsewhere perhaps
  bool own_claim_ = true;
  std::string lane_, from_;  // of the step: its lane and prompt
  StepWatcher::Where where_;
};

}  // namespace

Repro reproduce(const EarlierVerdict& verdict, PluginHost& host, const ReproOptions& options) {
  return Reproduction(verdict, host, options).make();
}

}  // namespace moe_diag
