// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "core/recording/site_name.hpp"
#include "core/report/diagnosis_text.hpp"
#include "core/report/report.hpp"
#include "core/report/text.hpp"

namespace moe_diag {
namespace {

class Console {
 public:
  Console(const Verdict& verdict, bool details) : verdict_(verdict), contract_(*verdict.contract), details_(details) {}

  std::string text() {
    line("{}", headline(verdict_));
    const bool is_whole = verdict_.failure_is_usage && verdict_.diagnosis.made;  // what it found says so
    if (!verdict_.failure.empty()) line("\n{}{}", is_whole ? "" : "The run ended early: ", verdict_.failure);
    first_divergence();
    moved();
    falsifiers();
    what_ran();
    return std::move(text_);
  }

  std::string capture_text() {
    const bool whole = verdict_.failure.empty() && verdict_.captured_nothing.empty();
    line("{}: {} {}: {} of {} sinks complete; falsifiers in the contract, not judged: {}",
         whole                      ? "CAPTURED"
         : verdict_.failure.empty() ? "NOT ALL CAPTURED"
                                    : "FAILED",
         contract_.metadata.id, contract_.metadata.version, verdict_.outputs.size(), fed_sinks(), contract_.stated);
    if (!verdict_.failure.empty()) line("\nThe run ended early: {}", verdict_.failure);
    if (const std::string oracle = oracle_text(verdict_); !oracle.empty())
      line("\nThe oracle is not finite: {}", oracle);
    what_ran();
    return std::move(text_);
  }

 private:
  std::size_t fed_sinks() const {
    std::set<std::string_view> sinks;
    for (const CaptureSpec& c : contract_.capture) sinks.insert(c.to.begin(), c.to.end());
    return sinks.size();
  }

  template <class... Args>
  void line(fmt::format_string<Args...> format, Args&&... args) {
    text_ += fmt::format(format, std::forward<Args>(args)...);
    text_ += '\n';
  }

  // A falsifier that the divergence explains: one that fails at its very place, else the first in forward order.
  const Judgement* seen_by(int divergence) const {
    const Judgement* seen = verdict_.first_divergence();
    if (seen && seen->explanation.divergence != divergence) seen = nullptr;
    for (const Judgement& j : verdict_.judgements) {
      if (j.outcome != Outcome::falsified || j.explanation.divergence != divergence) continue;
      if (own_divergence(verdict_, j)) return &j;
      if (!seen) seen = &j;
    }
    return seen;
  }

  // The divergence to begin with: an oracle that is not finite, else the first wrong step that explains a claim, else
  // the first of all. A choice of experts comes first only when it is why the first falsifier fails.
  int leading() const {
    const std::vector<Divergence>& all = verdict_.diagnosis.divergences;
    if (all.empty()) return -1;
    const Judgement* first = verdict_.first_divergence();
    if (all.front().cause == Cause::oracle_not_finite) return 0;
    for (std::size_t i = 0; i < all.size(); ++i) {
      const bool leads = is_of_step(all[i].cause) || (first && first->explanation.divergence == static_cast<int>(i));
      if (leads && seen_by(static_cast<int>(i))) return static_cast<int>(i);
    }
    return is_of_step(all.front().cause) ? 0 : -1;
  }

  void first_divergence() {
    const int leads = leading();
    const Judgement* first = leads < 0 ? verdict_.first_divergence() : seen_by(leads);
    if (!first && leads < 0) return;
    text_ += "\nFirst divergence\n";
    if (leads >= 0 && !(first && own_divergence(verdict_, *first))) {
      text_ += divergence_block(verdict_, verdict_.diagnosis.divergences[static_cast<std::size_t>(leads)]);
      if (first) text_ += "\nSeen as\n";
    }
    if (first) text_ += divergence_text(verdict_, *first);
    other_divergences(leads);
    curves(leads, first);
    text_ += nonfinite_block(verdict_);
  }

  void moved() {
    constexpr std::size_t most = 8;
    const std::vector<Moved>& all = verdict_.moved;
    if (verdict_.baseline.empty()) return;
    if (all.empty()) return line("\nbaseline   {}: no error grew beyond it", verdict_.baseline);
    line("\nWorse than {}", verdict_.baseline);
    const std::size_t shown = details_ ? all.size() : std::min(all.size(), most);
    for (std::size_t i = 0; i < shown; ++i) {
      const Judgement& j = verdict_.judgements[all[i].falsifier];
      line("  {}, prompt {}, {}: {} is {:.4g}, and was {:.4g}: {:.3g} times the error", j.spec->id,
           contract_.prompts[static_cast<std::size_t>(all[i].prompt)].id, text_of(all[i].site), name_of(j.spec->metric),
           all[i].now, all[i].before, all[i].times);
    }
    if (shown < all.size()) line("  and {} more, which are in the JSON", all.size() - shown);
  }

  void other_divergences(int leads) {
    std::vector<const Divergence*> others;
    for (const Divergence& d : verdict_.diagnosis.divergences)
      if (leads < 0 || &d != &verdict_.diagnosis.divergences[static_cast<std::size_t>(leads)]) others.push_back(&d);
    if (others.empty()) return;
    line("\n{}", leads < 0 ? "Divergences" : "Other divergences");
    const std::size_t shown = details_ ? others.size() : std::min(others.size(), most_divergences);
    for (std::size_t i = 0; i < shown; ++i) line("  {}", divergence_line(verdict_, *others[i]));
    if (shown < others.size()) line("  and {} more, which are in the JSON", others.size() - shown);
  }

  // Of the lane that parts first: its residual stream, and the stage that the falsifier is about.
  void curves(int leads, const Judgement* seen) {
    const std::vector<Curve>& curves = verdict_.diagnosis.curves;
    if (curves.empty()) return;
    const Divergence* first = leads < 0 ? nullptr : &verdict_.diagnosis.divergences[static_cast<std::size_t>(leads)];
    const int lane = first ? first->lane : curves.front().lane, layer = first ? first->site.layer : -1;
    const Stage stage = seen ? seen->leading_failure()->site.stage : Stage();
    for (const Curve& curve : curves) {
      const bool asked = curve.stage == stage || is(curve.stage, Role::layer_output);
      if (details_ || (curve.lane == lane && asked)) text_ += curve_block(verdict_, curve, layer);
    }
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
         worst ? fmt::format("{:.6g}", worst->worst.value) : "-",
         bound_text(worst ? worst->worst.bound : j.spec->bound), worst ? place_text(verdict_, worst->worst) : "-");
    if (!j.reason.empty()) line("{:10} {}{}", "", j.allowed ? "allowed: " : "", j.reason);
    for (const std::string& remark : j.remarks) line("{:10} {}", "", remark);
    for (const Spread& s : j.spreads)
      line("{:10} prompt {}: median of {} {:.6g}, from {:.6g} to {:.6g}", "",
           contract_.prompts[static_cast<std::size_t>(s.prompt)].id, s.repeats, s.median, s.lowest, s.highest);
    if (j.outcome == Outcome::falsified && has_stage(j.spec->metric))
      line("{:10} {} of {} samples at {} of {} sites", "", j.failing, j.samples,
           std::count_if(j.sites.begin(), j.sites.end(), [](const SiteResult& s) { return s.failing > 0; }),
           j.sites.size());
    if (const std::string cause = cause_text(verdict_, j); j.outcome == Outcome::falsified && !cause.empty())
      line("{:10} {}", "", cause.substr(0, cause.find("; ")));
    if (j.skipped_experts > 0)
      line("{:10} {} expert slots not compared: their experts have no slot in the other lane", "", j.skipped_experts);
    if (j.without_floor > 0)
      line("{:10} {} samples counted in the error of other rows: the lane of the floor went through other experts", "",
           j.without_floor);
    flips(j);
    for (const ControlResult& c : j.controls)
      if (details_ || !c.tripped)
        line("{:10} control {}: {}: {}", "", c.fault, c.tripped ? "tripped" : "NOT TRIPPED", c.message);
  }

  // How often the lanes chose other experts, and the sample that speaks most against it.
  void flips(const Judgement& j) {
    const std::int64_t tie = j.count(FlipKind::tie), drift = j.count(FlipKind::drift), real = j.count(FlipKind::real);
    if (tie + drift + real > 0)
      line("{:10} experts chosen in another's place: {} by a tie, {} by drift, {} really", "", tie, drift, real);
    if (!j.worst()) return;
    for (const Flip& flip : j.worst()->worst.flips) line("{:10} worst: {}", "", text_of(flip));
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
    std::size_t bare = 0, judged = 0;
    for (const Judgement& j : verdict_.judgements)
      if (has_stage(j.spec->metric) && j.outcome != Outcome::untested) {
        ++judged;
        bare += j.spec->controls.empty() ? 1 : 0;
      }
    if (verdict_.controls && bare > 0)
      line("controls   {} of {} that were judged {} no control: whether {} can fail is not shown", bare,
           counted(judged, "claim"), bare == 1 ? "has" : "have", bare == 1 ? "it" : "they");
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
        line("lane       {}{}: {}{}", l.name, role, lane_text(l), fed);
      else
        line("lane       {}{}: absent: {}", l.name, role, l.absent);
    }
    if (const std::string ran = coverage_text(verdict_); !ran.empty()) line("experts    run: {}", ran);
    for (const std::string& fault : verdict_.planted) line("planted    {}", fault);
    for (const std::string& sink : verdict_.outputs) line("sink       {}: complete", sink);
    for (const NotCaptured& missing : verdict_.captured_nothing)
      line("capture    not made{}: {}", missing.allowed ? ", which is allowed" : "", missing.what);
    std::size_t controls = 0, tripped = 0;
    for (const Judgement& j : verdict_.judgements)
      for (const ControlResult& c : j.controls) {
        ++controls;
        tripped += c.tripped;
      }
    if (controls > 0) line("controls   {} of {} tripped", tripped, controls);
    without_controls();
    const Timing& t = verdict_.timing;
    const auto part = [](std::string_view name, double s) { return s > 0 ? fmt::format("{} {:.2f}, ", name, s) : ""; };
    line("time       {:.2f} s: open {:.2f}, forward and judging {:.2f}, lanes alone {:.2f}, {}{}controls {:.2f}",
         t.total, t.open, t.forward, t.solo, part("evidence", t.evidence), part("explaining", t.explain), t.controls);
  }

  static constexpr std::size_t most_shown = 16;       // generated tokens of a prompt
  static constexpr std::size_t most_divergences = 8;  // besides the first

  const Verdict& verdict_;
  const Contract& contract_;
  const bool details_;
  std::string text_;
};

}  // namespace

std::string capture_report(const Verdict& verdict) { return Console(verdict, false).capture_text(); }

std::string console_report(const Verdict& verdict, bool details) { return Console(verdict, details).text(); }

}  // namespace moe_diag
