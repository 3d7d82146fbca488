// SPDX-License-Identifier: MIT
// What a runner has to say in a verdict, before the run and after it.
#include <fmt/format.h>

#include <algorithm>

#include "core/run/runner.hpp"

namespace moe_diag {

Verdict Runner::begin_verdict() const {
  Verdict verdict;
  verdict.contract = &contract_;
  verdict.started = started_;
  verdict.model = model_report_;
  verdict.planted = planted_.texts();
  for (const FaultSpec& fault : options_.inject) verdict.injected.push_back(flow_text(fault));
  for (std::size_t i = 0; lanes_ && i < lanes_->size(); ++i) verdict.lanes.push_back(lane_report(i));
  return verdict;
}

LaneReport Runner::lane_report(std::size_t i) const {
  const LaneSpec& spec = contract_.lanes[i];
  const RunningLane& lane = (*lanes_)[i];
  const Description& d = lane.description;
  return {spec.name,
          spec.backend,
          d.numerics,
          d.device,
          d.instruction_set,
          spec.inputs,
          spec.routing,
          lane.absent,
          lane.unfed,
          lane.plain_operators,
          lane.engine,
          lane.composition ? lane.composition->operators() : "",
          lane.composition ? fmt::format("{}, {}", lane.base.device, lane.base.numerics) : ""};
}

std::vector<std::string> Runner::absences() const {
  std::vector<std::string> list;
  if (!model_report_.absent.empty()) list.push_back("model: " + model_report_.absent);
  for (std::size_t i = 0; lanes_ && i < lanes_->size(); ++i)
    if (const RunningLane& lane = (*lanes_)[i]; !lane.absent.empty())
      list.push_back(fmt::format("lane '{}': {}", lane.name, lane.absent));
  return list;
}

Verdict Runner::untested() const {
  const std::string reason = "the model is absent: " + model_report_.absent;
  Verdict verdict = begin_verdict();
  for (const FalsifierSpec& spec : contract_.falsifiers) {
    Judgement j;
    j.spec = &spec;
    j.reason = reason;
    verdict.judgements.push_back(std::move(j));
  }
  if (std::any_of(contract_.capture.begin(), contract_.capture.end(),
                  [](const CaptureSpec& c) { return c.when == CaptureSpec::When::always; }))
    verdict.captured_nothing.push_back({reason, "", false, contract_.model.where.line});
  finish(verdict);
  return verdict;
}

// When the run was not interrupted, the digest is waited for all the same: else the verdict has the sampled one, and
// says so.
void Runner::fail(const Error& error, Verdict& verdict) const {
  verdict.failure = error.what();
  verdict.failure_is_usage = error.kind() == ErrorKind::usage;
  if (verdict.timing.forward == 0) verdict.timing.forward = seconds() - verdict.timing.open;
  if (options_.interrupted && options_.interrupted()) return;
  try {
    verdict.timing.digest += finish_digest();
  } catch (const Error&) {  // interrupted now
  }
}

void Runner::finish(Verdict& verdict) const {
  verdict.prompts = prompt_reports();
  if (model_) verdict.model.digest = model_->digest_so_far();
  verdict.timing.total = seconds();
}

std::vector<PromptReport> Runner::prompt_reports() const {
  const Vocabulary vocabulary = model_ ? model_->vocabulary() : Vocabulary();
  std::vector<PromptReport> reports;
  for (const PromptSpec& prompt : contract_.prompts) {
    const auto p = static_cast<int>(reports.size());
    PromptReport& report = reports.emplace_back();
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
  return reports;
}

}  // namespace moe_diag
