// SPDX-License-Identifier: MIT
#include "core/repro/case_writer.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "core/compare/measure.hpp"
#include "core/model/part.hpp"
#include "core/ops/values.hpp"
#include "core/plan/budget.hpp"
#include "core/plugin/oracle_backend.hpp"
#include "core/report/text.hpp"
#include "core/run/runner.hpp"
#include "core/text/quote.hpp"
#include "core/verdict/controls.hpp"

namespace moe_diag {
namespace {

constexpr std::size_t longest_id = 100;
constexpr std::uint64_t most_for_same_values = std::uint64_t{16} << 20;  // bytes of tensors that a larger case may have

std::string numerics_of(const LaneSpec& lane) {
  for (const Options::Entry& entry : lane.options.entries())
    if (entry.key == "numerics") return entry.value;
  return "";
}

const LaneSpec& lane_called(const Contract& contract, const std::string& name) {
  return *std::find_if(contract.lanes.begin(), contract.lanes.end(), [&](const LaneSpec& l) { return l.name == name; });
}

// "0 is 3, 1 is 87"
std::string numbering(const std::vector<std::int32_t>& ids) {
  std::vector<std::string> pairs;
  for (std::size_t i = 0; i < ids.size(); ++i) pairs.push_back(fmt::format("{} is {}", i, ids[i]));
  return fmt::format("{}", fmt::join(pairs, ", "));
}

std::string tensors_of(const Step& step) {
  std::vector<std::string> tensors;
  for (const Weight* w : step.weights) tensors.push_back(fmt::format("{} ({})", w->name, name_of(w->type)));
  return tensors.empty() ? "" : fmt::format(": {}", fmt::join(tensors, ", "));
}

std::string positions_text(const Cut& cut) {
  return cut.count == 1 ? fmt::format("position {}", cut.first)
                        : fmt::format("positions {} to {}", cut.first, cut.first + cut.count - 1);
}

}  // namespace

CaseWriter::CaseWriter(const Parts& parts, PluginHost& host, const CaseFolder& folder)
    : parts_(parts),
      host_(host),
      folder_(folder),
      options_(parts.options),
      step_(*find_step(parts.program, parts.where.site)) {
  options_.explain = false;
  options_.models = nullptr;
  const auto tokens = parts.sequences.tokens(parts.where.prompt);
  tokens_.assign(tokens.begin(), tokens.begin() + parts.sequences.known(parts.where.prompt));
  const PromptSpec& prompt = parts.contract.prompts[static_cast<std::size_t>(parts.where.prompt)];
  case_.id = ("repro-" + parts.falsifier.id).substr(0, longest_id);
  case_.version = parts.contract.metadata.version;
  case_.description =
      fmt::format("{} of lane {} alone, out of {}", text_of(parts.where.site), parts.lane, parts.contract.metadata.id);
  case_.prompt = prompt.id;
  case_.site = parts.where.site;
  case_.inputs = stages_given(step_);
  choose_lanes();
}

bool CaseWriter::has_fault(const std::string& lane) const {
  return std::any_of(parts_.contract.planted.begin(), parts_.contract.planted.end(), [&](const FaultSpec& f) {
    return f.lane == lane && Site{f.stage, f.layer} == parts_.where.site;
  });
}

void CaseWriter::add_lane(const std::string& name, bool fed) {
  for (const LaneSpec& lane : case_.lanes)
    if (lane.name == name) return;
  LaneSpec lane = lane_called(parts_.contract, name);
  lane.inputs = fed ? case_.oracle : "";
  if (!lane.base.empty()) add_lane(lane.base, false);
  case_.lanes.push_back(std::move(lane));
}

// The contract's own where it computes in f64 and as it should; else one that does.
std::string CaseWriter::add_oracle() {
  const std::string& own = parts_.contract.oracle;
  if (!own.empty() && own != parts_.lane && !has_fault(own) &&
      numerics_of(lane_called(parts_.contract, own)) == "f64") {
    add_lane(own, false);
    return own;
  }
  LaneSpec lane;
  lane.name = "truth";
  const auto is_taken = [&] {
    return std::any_of(parts_.contract.lanes.begin(), parts_.contract.lanes.end(),
                       [&](const LaneSpec& l) { return l.name == lane.name; });
  };
  for (int n = 2; is_taken(); ++n) lane.name = fmt::format("truth{}", n);
  lane.backend = oracle_backend(host_, "a case has its oracle");
  lane.options.add("numerics", "f64", "");
  case_.lanes.push_back(lane);
  return lane.name;
}

void CaseWriter::choose_lanes() {
  case_.oracle = add_oracle();
  add_lane(parts_.lane, true);
  case_.claims = parts_.claims;
  for (FalsifierSpec& claim : case_.claims) {
    const bool against_lane = !claim.against.empty() && claim.against != parts_.contract.oracle;
    if (against_lane || (claim.against == parts_.contract.oracle && has_fault(claim.against)))
      add_lane(claim.against, false);
    else if (!claim.against.empty())
      claim.against = case_.oracle;
    if (!claim.floor.empty()) add_lane(claim.floor, false);
  }
}

bool CaseWriter::write() {
  std::vector<std::int32_t> elements;  // of a row of the output, that faults change
  for (const FaultSpec& fault : parts_.contract.planted)
    if (Site{fault.stage, fault.layer} == parts_.where.site) elements.push_back(fault.index);
  const Model& model = parts_.model;
  std::optional<Cut> fails_otherwise;  // with other values than in the run
  for (const Cut& cut : cuts_of(parts_.seen, step_, model.config(), parts_.where.position, tokens_, elements)) {
    if (fails_otherwise && part_bytes(model, {parts_.where.site, cut.experts, cut.vocabulary}) > most_for_same_values)
      continue;
    if (!write_cut(cut)) continue;
    if (changed_ == 0) return true;
    if (!fails_otherwise) fails_otherwise = cut;
  }
  return fails_otherwise && write_cut(*fails_otherwise);
}

bool CaseWriter::write_cut(const Cut& cut) {
  folder_.empty();
  cut_to(cut);
  if (!fails()) return false;
  folder_.write(std::string(case_readme), readme());
  return true;
}

void CaseWriter::cut_to(const Cut& cut) {
  case_.cut = cut;
  case_.tokens = tokens_;
  if (!cut.vocabulary.empty())
    for (std::int32_t& token : case_.tokens) token = std::max(0, number_of(token, cut.vocabulary));
  case_.planted.clear();
  for (const FaultSpec& fault : parts_.contract.planted) {
    const bool here =
        Site{fault.stage, fault.layer} == parts_.where.site &&
        std::any_of(case_.lanes.begin(), case_.lanes.end(), [&](const LaneSpec& l) { return l.name == fault.lane; });
    if (!here) continue;
    if (auto kept = fault_in_case(fault, cut, static_cast<int>(tokens_.size()))) case_.planted.push_back(*kept);
  }
  write_part(parts_.model, {parts_.where.site, cut.experts, cut.vocabulary}, folder_ / case_model);
  for (const GivenValues& values : inputs_of(parts_.seen, step_, cut)) folder_.write(input_file(values.stage), values);
  case_.expected.clear();
  const std::vector<GivenValues> expected = outputs(case_);
  case_.is_finite = true;
  for (const GivenValues& values : expected) {
    folder_.write(expected_file(values.stage), values);
    case_.expected.push_back(values.stage);
    if (values.dtype != DType::i32)
      case_.is_finite = case_.is_finite && count_nonfinite(values.tensor(), 0, values.shape.count()) == 0;
  }
  folder_.write(std::string(case_contract), contract_text(case_));
}

// What the oracle gives, and beside it what the lane does.
std::vector<GivenValues> CaseWriter::outputs(const CaseContract& without) {
  const Contract contract = parse_contract(contract_text(without), folder_ / case_contract);
  Runner runner(contract, host_, options_);
  if (!runner.open_model()) throw Error(ErrorKind::environment, runner.absences().front());
  runner.plan();
  runner.open_lanes();
  std::vector<GivenValues> outputs;
  for (Stage stage : step_.out) {
    const int lane = runner.lanes().index_of(parts_.lane), oracle = runner.lanes().index_of(case_.oracle);
    StepWatcher watcher(runner.program(), {0, case_.cut.first, {stage, step_.layer}, lane, oracle});
    runner.show_to(watcher);
    if (stage == parts_.where.site.stage) compare_with_run(watcher.seen());
    outputs.push_back(watcher.seen().other);
    outputs.back().stage = stage;
  }
  return outputs;
}

void CaseWriter::compare_with_run(const SeenStep& alone) {
  changed_ = 0;
  const host::Values now = host::values_of(alone.output.tensor());
  const host::Values before =
      host::values_of(parts_.seen.output.tensor(), case_.cut.first - parts_.seen.first, case_.cut.count);
  const bool of_head = is(parts_.where.site.stage, Role::logits) && !case_.cut.vocabulary.empty();
  const std::size_t width = now.size() / static_cast<std::size_t>(case_.cut.count);
  for (std::size_t i = 0; i < now.size(); ++i) {
    const std::size_t there = of_head ? i / width * (before.size() / static_cast<std::size_t>(case_.cut.count)) +
                                            static_cast<std::size_t>(case_.cut.vocabulary[i % width])
                                      : i;
    const double difference = std::fabs(now[i] - before[there]);
    const bool same = now[i] == before[there] || (std::isnan(now[i]) && std::isnan(before[there]));
    if (!same && !(difference <= changed_)) changed_ = difference;
  }
}

// Runs the case as it lies on the disk.
bool CaseWriter::fails() {
  held_.clear();
  failed_.clear();
  const Contract contract = read_contract(folder_ / case_contract);
  const Verdict verdict = run_contract(contract, host_, options_);
  if (!verdict.failure.empty() && !verdict.failure_is_usage) throw Error(ErrorKind::environment, verdict.failure);
  for (const Judgement& j : verdict.judgements) {
    const SiteResult* site = j.outcome == Outcome::falsified ? j.leading_failure() : j.worst();
    const Sample* sample = !site ? nullptr : j.outcome == Outcome::falsified ? &site->first_failing : &site->worst;
    std::string& lines = j.outcome == Outcome::falsified ? failed_ : held_;
    lines += fmt::format("  {:<10} {}", j.spec->id, name_of(j.outcome));
    if (sample)
      lines += fmt::format(": {} = {:.6g}, claimed {}", metric_text(*j.spec), sample->value, bound_text(sample->bound));
    lines += (j.reason.empty() ? "" : ": " + j.reason) + '\n';
    if (j.spec->id == "EXPECTED" && j.outcome != Outcome::held) return false;
  }
  if (!verdict.failure.empty()) held_ += "  " + verdict.failure + '\n';
  return verdict.failure.empty() && !failed_.empty();
}

std::string CaseWriter::what_held() const { return held_; }

// What of the model is in the case, and under which numbers.
std::string CaseWriter::numbers() const {
  const Cut& cut = case_.cut;
  std::string text =
      fmt::format("{} of {} of prompt {}, as in the run\n", positions_text(cut), tokens_.size(), case_.prompt);
  const ModelConfig& config = parts_.model.config();
  if (!cut.experts.empty())
    text += fmt::format("           experts: {} of the model's {}, which have new numbers: {}\n", cut.experts.size(),
                        config.experts, numbering(cut.experts));
  if (!cut.vocabulary.empty())
    text += fmt::format("           vocabulary: {} of the model's {} tokens, which have new numbers: {}\n",
                        cut.vocabulary.size(), config.vocab, numbering(cut.vocabulary));
  return text;
}

std::string CaseWriter::summary(const std::string& place) const {
  const ModelConfig& config = parts_.model.config();
  std::string kept;
  if (!case_.cut.experts.empty()) kept += fmt::format(", {} of {} experts", case_.cut.experts.size(), config.experts);
  if (!case_.cut.vocabulary.empty())
    kept += fmt::format(", {} of {} tokens of the vocabulary", case_.cut.vocabulary.size(), config.vocab);
  return fmt::format(
      "case       {}: {} of lane {}, {} of prompt {}{}; {}\nalone\n{}{}again      moe-diag run {} --out {} "
      "--overwrite\n",
      place, text_of(parts_.where.site), parts_.lane, positions_text(case_.cut), case_.prompt, kept,
      bytes_text(folder_.bytes()), failed_, held_, shell_word(place + '/' + std::string(case_contract)),
      shell_word(place + "/out"));
}

std::string CaseWriter::values_text() const {
  if (changed_ == 0) return "the same values as in the run";
  const std::string by = std::isfinite(changed_) ? fmt::format(" by up to {:.6g}", changed_) : "";
  return fmt::format("other values than in the run, which they differ from{}: the failure reads what was left out", by);
}

std::string CaseWriter::readme() const {
  const EarlierVerdict& v = parts_.verdict;
  std::string text = fmt::format(
      "One step of a model, to be run alone. Written by moe-diag repro.\n\n"
      "step       {}{}\nlane       {}\ncomputes   {}",
      text_of(step_), tensors_of(step_), parts_.lane, numbers());
  text += fmt::format("fails      when it is run:\n{}{}", failed_, held_);
  text += fmt::format("           the lane gives {}\n", values_text());
  if (!case_.planted.empty()) {
    text += "planted    ";
    for (const FaultSpec& fault : case_.planted)
      text += fmt::format("{}, lane {}\n           ", fault.text, fault.lane);
    text.resize(text.size() - 11);
  }
  text += fmt::format("out of     {} of {} {}, contract {} (digest {})\n", parts_.falsifier.id,
                      parts_.contract.metadata.id, parts_.contract.metadata.version, v.contract, v.contract_digest);
  if (!parts_.falsifier.cause.empty())
    text += fmt::format("cause      {}, as the verdict names it\n", parts_.falsifier.cause);
  text += fmt::format("model      {} (digest {})\n\n", v.model, v.model_digest);
  text += fmt::format(
      "Run it:            moe-diag run contract.yaml --out out --overwrite\n"
      "On another backend: moe-diag run contract.yaml --out out --overwrite --set lanes.{0}.backend=NAME --set "
      "lanes.{0}.numerics=NAME\n\n"
      "inputs/   what the step read\nexpected/ what the lane {1}, in f64, makes of it\ncase.gguf what the step reads "
      "of "
      "the model\n",
      parts_.lane, case_.oracle);
  return text;
}

}  // namespace moe_diag
