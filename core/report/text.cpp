// SPDX-License-Identifier: MIT
#include "core/report/text.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "core/report/diagnosis_text.hpp"
#include "core/verdict/controls.hpp"

namespace moe_diag {
namespace {

std::string threshold(const Judgement& j) {
  if (const auto bound = bound_that_holds(j)) return fmt::format("{} {}", name_of(bound->kind), bound->value);
  const double worst = j.worst()->worst.value;
  if (std::isnan(worst)) return "none, a value is NaN";
  return std::isinf(worst) ? "none, a value is infinite" : "none, one that holds could not fail";
}

// Where every step is as exact as its numerics allow, the claim may ask for too much; elsewhere something is wrong.
bool may_be_loosened(const Judgement& j) {
  return j.explanation.cause == Cause::drift || j.explanation.cause == Cause::numerics;
}

std::string values_text(const Measure& m) {
  std::string text;
  if (m.nonfinite_a + m.nonfinite_b > 0)
    text += fmt::format("  values     NaN or Inf: {} of {} in the lane, {} in what it is compared with{}\n",
                        m.nonfinite_a, m.count, m.nonfinite_b,
                        m.nonfinite_new > 0
                            ? fmt::format("; first at element {} where the other is finite", m.first_nonfinite_new)
                            : "");
  if (m.max_index >= 0 && m.max_abs > 0)
    text += fmt::format("  values     largest difference {:.6g} at element {}: {:.9g}, expected {:.9g}\n", m.max_abs,
                        m.max_index, m.a_at_max, m.b_at_max);
  return text;
}

}  // namespace

std::string_view word_of(const Verdict& verdict) {
  const auto any = [&](Outcome o) { return verdict.count(o) > 0; };
  if (!verdict.failure.empty()) return "FAILED";
  if (any(Outcome::falsified)) return "FALSIFIED";
  if (any(Outcome::vacuous)) return "VACUOUS";
  if (!verdict.moved.empty()) return "WORSE";
  if (verdict.count(Outcome::untested) > verdict.count_allowed()) return "UNTESTED";
  if (std::any_of(verdict.captured_nothing.begin(), verdict.captured_nothing.end(),
                  [](const NotCaptured& n) { return !n.allowed; }))
    return "NOT CAPTURED";
  if (verdict.judgements.empty()) return "NOTHING JUDGED";
  return any(Outcome::held) ? "HELD" : "UNTESTED, AS ALLOWED";
}

std::string headline(const Verdict& verdict) {
  const Contract& contract = *verdict.contract;
  const auto count = [&](Outcome o) { return verdict.count(o); };
  std::string text = fmt::format("{}: {} {}: {} held, {} falsified, {} vacuous, {} untested", word_of(verdict),
                                 contract.metadata.id, contract.metadata.version, count(Outcome::held),
                                 count(Outcome::falsified), count(Outcome::vacuous), count(Outcome::untested));
  if (verdict.count_allowed() > 0) text += fmt::format(" ({} allowed)", verdict.count_allowed());
  if (contract.falsifiers.size() < contract.stated)
    text += fmt::format("; {} of {} falsifiers selected", contract.falsifiers.size(), contract.stated);
  return text;
}

std::string token_text(const PromptReport& prompt, std::size_t at) {
  const bool has_text = at < prompt.texts.size() && !prompt.texts[at].empty();
  return fmt::format("{}{}{}", prompt.tokens[at], has_text ? " " : "", has_text ? prompt.texts[at] : "");
}

std::string place_text(const Verdict& verdict, const Sample& s) {
  std::string where = fmt::format("prompt {}", verdict.contract->prompts[static_cast<std::size_t>(s.prompt)].id);
  if (s.position == whole_pass) return where;
  const PromptReport& prompt = verdict.prompts[static_cast<std::size_t>(s.prompt)];
  const auto at = static_cast<std::size_t>(s.position);
  where += fmt::format(", position {}", s.position);
  if (at < prompt.texts.size()) where += fmt::format(" (token {})", token_text(prompt, at));
  where += fmt::format(", {}", text_of(s.site));
  if (s.expert >= 0) where += fmt::format(", expert {}", s.expert);
  return where;
}

std::string metric_text(const FalsifierSpec& spec) {
  const std::string name(name_of(spec.metric));
  return spec.metric == Metric::identical ? fmt::format("{} to {}", name, name_of(spec.to)) : name;
}

std::string bound_text(const Bound& bound) { return fmt::format("{} {:g}", name_of(bound.kind), bound.value); }

std::string divergence_text(const Verdict& verdict, const Judgement& judgement) {
  const FalsifierSpec& spec = *judgement.spec;
  const SiteResult& site = *judgement.leading_failure();
  const Sample& s = site.first_failing;
  std::string text;
  const auto line = [&](std::string_view what, const std::string& value) {
    text += fmt::format("  {:<10} {}\n", what, value);
  };
  line("where", place_text(verdict, s));
  line("lane", spec.lane + (spec.against.empty() ? "" : " against " + spec.against));
  if (const std::string cause = cause_text(verdict, judgement); !cause.empty()) line("cause", in_lines(cause));
  const Divergence* own = own_divergence(verdict, judgement);
  if (own)
    text += step_block(verdict, *own);
  else if (&judgement == verdict.first_divergence() && !verdict.tensors.empty())
    line("reads", fmt::format("{}", fmt::join(verdict.tensors, ", ")));
  line("number", fmt::format("{} = {:.6g}, claimed {}", metric_text(spec), s.value, bound_text(s.bound)));
  line("site", fmt::format("{} of {} samples fail there, worst {:.6g} at position {}", site.failing, site.samples,
                           site.worst.value, site.worst.position));
  line("falsifies", fmt::format("{}: {}", spec.id, spec.claim));
  text += values_text(s.measure);
  for (const Flip& flip : s.flips) line("routing", text_of(flip));
  const bool everywhere = spec.per_stage.empty() && spec.per_type.empty();
  if (may_be_loosened(judgement))
    line("threshold",
         fmt::format("that would have held {}: {}",
                     everywhere ? "over all of it" : fmt::format("wherever {} is claimed", bound_text(s.bound)),
                     threshold(judgement)));
  return text;
}

std::string reason_text(const Verdict& verdict, const Judgement& judgement) {
  const SiteResult* site = judgement.leading_failure();
  if (judgement.outcome != Outcome::falsified || !site)
    return judgement.reason.empty() ? std::string(name_of(judgement.outcome)) : judgement.reason;
  const Sample& s = site->first_failing;
  std::string cause = cause_text(verdict, judgement);
  for (const Flip& flip : s.flips)
    if (flip.is_misnamed() && cause.find(choice_text(flip)) == std::string::npos)
      cause += (cause.empty() ? "" : "; ") + choice_text(flip);
  return fmt::format("{}: {} = {:.6g}, claimed {}; {} of {} samples fail{}{}", place_text(verdict, s),
                     metric_text(*judgement.spec), s.value, bound_text(s.bound), judgement.failing, judgement.samples,
                     cause.empty() ? "" : "; ", cause);
}

std::string changed_text(const Verdict& verdict) {
  std::string text;
  for (const std::string& fault : verdict.planted) text += fmt::format("planted fault: {}\n", fault);
  for (const auto& [key, value] : verdict.contract->overrides) text += fmt::format("--set {}={}\n", key, value);
  return text;
}

std::string numerics_text(const LaneReport& lane) {
  return lane.numerics + (lane.engine.empty() ? "" : ", " + lane.engine);
}

std::string lane_text(const LaneReport& lane) {
  std::string text = fmt::format("{} {}", lane.backend, numerics_text(lane));
  if (!lane.device.empty()) text += fmt::format(" on {}", lane.device);
  if (!lane.instruction_set.empty()) text += fmt::format(", {}", lane.instruction_set);
  if (!lane.kernel.empty()) text += fmt::format("; a kernel for {}, all else on {}", lane.kernel, lane.base);
  if (!lane.plain_operators.empty()) text += fmt::format("; in f64 on the host: {}", lane.plain_operators);
  return text;
}

std::string counted(std::size_t number, std::string_view what) {
  return fmt::format("{} {}{}", number, what, number == 1 ? "" : "s");
}

}  // namespace moe_diag
