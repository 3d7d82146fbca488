// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "core/report/report.hpp"
#include "core/verdict/controls.hpp"

namespace moe_diag {
namespace {

class Console {
 public:
  Console(const Verdict& verdict, bool details) : verdict_(verdict), contract_(*verdict.contract), details_(details) {}

  std::string text() {
    headline();
    if (!verdict_.failure.empty()) line("\nThe run ended early: {}", verdict_.failure);
    first_divergence();
    falsifiers();
    what_ran();
    return std::move(text_);
  }

 private:
  template <class... Args>
  void line(fmt::format_string<Args...> format, Args&&... args) {
    text_ += fmt::format(format, std::forward<Args>(args)...);
    text_ += '\n';
  }

  void headline() {
    const auto count = [&](Outcome o) { return verdict_.count(o); };
    std::string_view word = "HELD";
    if (!verdict_.failure.empty())
      word = "FAILED";
    else if (count(Outcome::falsified) > 0)
      word = "FALSIFIED";
    else if (count(Outcome::vacuous) > 0)
      word = "VACUOUS";
    else if (count(Outcome::untested) > 0)
      word = "UNTESTED";
    else if (!verdict_.captured_nothing.empty())
      word = "NOT CAPTURED";
    else if (verdict_.judgements.empty())
      word = "NOTHING JUDGED";
    line("{}: {} {}: {} held, {} falsified, {} vacuous, {} untested", word, contract_.metadata.id,
         contract_.metadata.version, count(Outcome::held), count(Outcome::falsified), count(Outcome::vacuous),
         count(Outcome::untested));
  }

  std::string place(const Sample& s) const {
    if (s.position == whole_pass)
      return fmt::format("prompt {}", contract_.prompts[static_cast<std::size_t>(s.prompt)].id);
    const PromptReport& prompt = verdict_.prompts[static_cast<std::size_t>(s.prompt)];
    const auto at = static_cast<std::size_t>(s.position);
    const std::string token = at < prompt.texts.size() ? fmt::format(" (token {})", token_text(prompt, at)) : "";
    std::string where =
        fmt::format("prompt {}, position {}{}, {}", contract_.prompts[static_cast<std::size_t>(s.prompt)].id,
                    s.position, token, text_of(s.site));
    if (s.expert >= 0) where += fmt::format(", expert {}", s.expert);
    return where;
  }

  // "308 ' the'", or the number alone.
  static std::string token_text(const PromptReport& prompt, std::size_t at) {
    const bool has_text = at < prompt.texts.size() && !prompt.texts[at].empty();
    return fmt::format("{}{}{}", prompt.tokens[at], has_text ? " " : "", has_text ? prompt.texts[at] : "");
  }

  static std::string metric_text(const FalsifierSpec& spec) {
    const std::string name(name_of(spec.metric));
    return spec.metric == Metric::identical ? fmt::format("{} to {}", name, name_of(spec.to)) : name;
  }

  static std::string bound_text(const FalsifierSpec& spec) {
    return fmt::format("{} {:g}", name_of(spec.bound.kind), spec.bound.value);
  }

  void first_divergence() {
    const Judgement* first = verdict_.first_divergence();
    if (!first) return;
    const FalsifierSpec& spec = *first->spec;
    const SiteResult& site = *first->first_failing();
    const Sample& s = site.first_failing;
    line("\nFirst divergence");
    line("  where      {}", place(s));
    line("  lane       {}{}", spec.lane, spec.against.empty() ? "" : " against " + spec.against);
    line("  number     {} = {:.6g}, claimed {}", metric_text(spec), s.value, bound_text(spec));
    line("  site       {} of {} samples fail there, worst {:.6g} at position {}", site.failing, site.samples,
         site.worst.value, site.worst.position);
    line("  falsifies  {}: {}", spec.id, spec.claim);
    if (!verdict_.tensors.empty()) line("  tensor     {}", fmt::join(verdict_.tensors, ", "));
    values(s.measure);
    line("  threshold  that would have held over all of it: {}", threshold(*first));
  }

  // Rounded to the side that holds.
  static std::string threshold(const Judgement& j) {
    const double worst = j.worst()->worst.value;
    if (std::isnan(worst)) return "none, a value is NaN";
    const Bound& bound = j.spec->bound;
    if (bound.kind == Bound::Kind::equals) return "none, the values differ";
    std::string text = fmt::format("{:.6g}", worst);
    for (int digits = 7; digits <= 17; ++digits) {
      double rounded = 0;
      std::from_chars(text.data(), text.data() + text.size(), rounded);
      if (Bound{bound.kind, rounded}.holds(worst)) break;
      text = fmt::format("{:.{}g}", worst, digits);
    }
    return fmt::format("{} {}", name_of(bound.kind), text);
  }

  void values(const Measure& m) {
    if (m.nonfinite_a + m.nonfinite_b > 0)
      line("  values     NaN or Inf: {} of {} in the lane, {} in what it is compared with{}", m.nonfinite_a, m.count,
           m.nonfinite_b,
           m.nonfinite_new > 0 ? fmt::format("; first at element {} where the other is finite", m.first_nonfinite_new)
                               : "");
    if (m.max_index >= 0 && m.max_abs > 0)
      line("  values     largest difference {:.6g} at element {}: {:.9g}, expected {:.9g}", m.max_abs, m.max_index,
           m.a_at_max, m.b_at_max);
  }

  void falsifiers() {
    if (verdict_.judgements.empty()) return;
    std::size_t width = std::string_view("falsifier").size();
    for (const Judgement& j : verdict_.judgements) width = std::max(width, j.spec->id.size());
    line("\n{:<10} {:<{}}  {:>8}  {:<18} {:<18} {}", "outcome", "falsifier", width, "samples", "worst", "claimed",
         "where");
    for (const Judgement& j : verdict_.judgements) falsifier(j, width);
  }

  void falsifier(const Judgement& j, std::size_t width) {
    const SiteResult* worst = j.worst();
    line("{:<10} {:<{}}  {:>8}  {:<18} {:<18} {}", name_of(j.outcome), j.spec->id, width, j.samples,
         worst ? fmt::format("{:.6g}", worst->worst.value) : "-", bound_text(*j.spec),
         worst ? place(worst->worst) : "-");
    if (!j.reason.empty()) line("{:10} {}", "", j.reason);
    for (const std::string& remark : j.remarks) line("{:10} {}", "", remark);
    for (const Spread& s : j.spreads)
      line("{:10} prompt {}: median of {} {:.6g}, from {:.6g} to {:.6g}", "",
           contract_.prompts[static_cast<std::size_t>(s.prompt)].id, s.repeats, s.median, s.lowest, s.highest);
    if (j.outcome == Outcome::falsified && has_stage(j.spec->metric))
      line("{:10} {} of {} samples at {} of {} sites", "", j.failing, j.samples,
           std::count_if(j.sites.begin(), j.sites.end(), [](const SiteResult& s) { return s.failing > 0; }),
           j.sites.size());
    if (j.skipped_experts > 0)
      line("{:10} {} expert slots not compared: only this lane chose the expert", "", j.skipped_experts);
    for (const ControlResult& c : j.controls)
      if (details_ || !c.tripped)
        line("{:10} control {}: {}: {}", "", c.fault, c.tripped ? "tripped" : "NOT TRIPPED", c.message);
  }

  void generated(const PromptSpec& spec, const PromptReport& report) {
    if (spec.generate == 0) return;
    const auto first = report.tokens.size() - static_cast<std::size_t>(report.generated);
    std::vector<std::string> tokens;
    for (std::size_t i = first; i < report.tokens.size() && tokens.size() < most_shown; ++i)
      tokens.push_back(token_text(report, i));
    line("generated  prompt {}: {} of {} tokens{}{}{}", spec.id, report.generated, spec.generate,
         tokens.empty() ? "" : ": ", fmt::join(tokens, ", "),
         static_cast<std::size_t>(report.generated) > tokens.size() ? ", ..." : "");
    if (!report.stopped.empty()) line("{:10} {}", "", report.stopped);
  }

  // What `--controls` leaves out: a fault changes values, not how long they take.
  void without_controls() {
    std::vector<std::string> ids;
    for (const Judgement& j : verdict_.judgements)
      if (!has_stage(j.spec->metric)) ids.push_back(j.spec->id);
    if (verdict_.controls && !ids.empty())
      line("controls   none for {}: no fault changes what is measured of a whole pass", fmt::join(ids, ", "));
  }

  void what_ran() {
    const ModelReport& m = verdict_.model;
    if (!m.absent.empty()) {
      line("\nmodel      absent: {}", m.absent);
    } else {
      line("\nmodel      {}: {:.1f} MiB, {} of {} experts a token, digest {}", m.source,
           static_cast<double>(m.bytes) / 1048576.0, m.used, m.experts, m.digest);
    }
    for (std::size_t p = 0; p < verdict_.prompts.size(); ++p) generated(contract_.prompts[p], verdict_.prompts[p]);
    for (const LaneReport& l : verdict_.lanes) {
      std::string fed;
      if (!l.inputs.empty()) fed = ", inputs from " + l.inputs;
      if (!l.routing.empty()) fed += ", routing from " + l.routing;
      const std::string_view role = l.name == contract_.oracle ? " (oracle)" : "";
      if (l.absent.empty())
        line("lane       {}{}: {} {} on {}, {}{}", l.name, role, l.backend, l.numerics, l.device, l.instruction_set,
             fed);
      else
        line("lane       {}{}: absent: {}", l.name, role, l.absent);
    }
    for (const std::string& fault : verdict_.planted) line("planted    {}", fault);
    for (const std::string& sink : verdict_.outputs) line("sink       {}: complete", sink);
    for (const std::string& what : verdict_.captured_nothing) line("capture    not made: {}", what);
    std::size_t controls = 0, tripped = 0;
    for (const Judgement& j : verdict_.judgements)
      for (const ControlResult& c : j.controls) {
        ++controls;
        tripped += c.tripped;
      }
    if (controls > 0) line("controls   {} of {} tripped", tripped, controls);
    without_controls();
    const Timing& t = verdict_.timing;
    line("time       {:.2f} s: open {:.2f}, forward and judging {:.2f}, lanes alone {:.2f}, controls {:.2f}", t.total,
         t.open, t.forward, t.solo, t.controls);
  }

  static constexpr std::size_t most_shown = 16;  // generated tokens of a prompt

  const Verdict& verdict_;
  const Contract& contract_;
  const bool details_;
  std::string text_;
};

}  // namespace

std::string console_report(const Verdict& verdict, bool details) { return Console(verdict, details).text(); }

}  // namespace moe_diag
