// SPDX-License-Identifier: MIT
#include "core/report/diagnosis_text.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <map>
#include <vector>

#include "core/report/text.hpp"
#include "core/text/quote.hpp"
#include "core/verdict/controls.hpp"

namespace moe_diag {
namespace {

constexpr std::size_t most_layers = 8;  // of a curve
constexpr std::size_t most_sites = 4;   // of a lane that is not finite

std::string line(std::string_view what, const std::string& value) { return fmt::format("  {:<10} {}\n", what, value); }

const std::string& lane_name(const Verdict& verdict, int lane) {
  return verdict.contract->lanes[static_cast<std::size_t>(lane)].name;
}

// As it stands in a sentence.
std::string_view words_of(Cause cause) {
  if (cause == Cause::nonfinite_inherited) return "NaN or Inf inherited";
  return cause == Cause::nonfinite_origin ? "NaN or Inf begins here" : name_of(cause);
}

std::string counts_text(const Nonfinite& n) {
  std::string text = fmt::format("{} NaN and {} Inf of {} values", n.nan, n.inf, n.values);
  if (n.element < 0) return text;
  return fmt::format("{}, the first at {}element {} of position {}", text,
                     n.expert < 0 ? "" : fmt::format("expert {}, ", n.expert), n.element, n.position);
}

std::string place_of(const Verdict& verdict, const Divergence& d) {
  Sample sample;
  sample.prompt = d.prompt;
  sample.position = d.position;
  sample.site = d.site;
  sample.expert = d.expert;
  return place_text(verdict, sample);
}

// Indices of the points to be shown, ascending.
std::vector<std::size_t> shown(const std::vector<CurvePoint>& points, int marked) {
  std::vector<std::size_t> chosen;
  for (std::size_t i = 0; i < points.size(); ++i) {
    const bool beside = marked >= 0 && std::abs(points[i].layer - marked) <= 1;
    if (points.size() <= most_layers || i < 2 || i + 2 >= points.size() || beside) chosen.push_back(i);
  }
  return chosen;
}

}  // namespace

std::string cause_text(const Divergence& d) {
  std::string text(words_of(d.cause));
  if (!d.text.empty()) text += ": " + d.text;
  if (d.cause == Cause::plain_operator && d.text.empty())
    text += ": beyond its numerics, and nothing tried explains it";
  if (d.nonfinite.count() > 0 && d.cause != Cause::oracle_not_finite)
    text += fmt::format("{} inputs finite, output not: {}", d.text.empty() ? ":" : ";", counts_text(d.nonfinite));
  return text;
}

std::string cause_text(const Verdict& verdict, const Judgement& judgement) {
  const Explanation& e = judgement.explanation;
  if (e.cause == Cause::unexplained) return e.text.empty() ? "" : "not explained: " + e.text;
  const std::string more = e.text.empty() ? "" : "; " + e.text;
  if (e.cause == Cause::reference) return fmt::format("{}: {}", name_of(e.cause), e.text);
  if (e.divergence < 0) return fmt::format("{}: {}", name_of(e.cause), e.text);
  const Divergence& d = verdict.diagnosis.divergences[static_cast<std::size_t>(e.divergence)];
  const bool is_elsewhere = is_of_routing(d.cause) || d.cause == Cause::oracle_not_finite;
  if (e.cause == d.cause && !is_elsewhere) return cause_text(d) + more;
  const std::string place = fmt::format("{}, position {}", text_of(d.site), d.position);
  if (e.cause == d.cause) return fmt::format("{} at {}: {}{}", name_of(d.cause), place, d.text, more);
  return fmt::format("{} from {}: {}{}{}{}", words_of(e.cause), place, name_of(d.cause), d.text.empty() ? "" : ": ",
                     d.text, more);
}

const Divergence* own_divergence(const Verdict& verdict, const Judgement& judgement) {
  const Explanation& e = judgement.explanation;
  if (e.divergence < 0 || !(is_of_step(e.cause) || is_of_routing(e.cause))) return nullptr;
  const Divergence& d = verdict.diagnosis.divergences[static_cast<std::size_t>(e.divergence)];
  return d.site == judgement.leading_failure()->site ? &d : nullptr;
}

std::string in_lines(const std::string& text) {
  std::string lines;
  for (const char c : text) {
    if (c == ' ' && !lines.empty() && lines.back() == ';')
      lines.append(1, '\n').append(13, ' ');
    else
      lines.append(1, c);
  }
  return lines;
}

std::string step_block(const Verdict& verdict, const Divergence& d) {
  std::string text;
  if (is_of_step(d.cause) && std::isfinite(d.error) && d.expected > 0)
    text += line("step", fmt::format("error {:.3g} on the oracle's inputs, {:.2g} expected of {}", d.error, d.expected,
                                     numerics_text(verdict.lanes[static_cast<std::size_t>(d.lane)])));
  if (!d.footprint.text.empty()) text += line("wrong", d.footprint.text);
  if (!d.recorded.empty()) text += line("recorded", d.recorded);
  if (!d.tensors.empty()) text += line("tensor", fmt::format("{}", fmt::join(d.tensors, ", ")));
  if (!d.kernel.empty()) text += line("kernel", d.kernel);
  return text;
}

std::string divergence_block(const Verdict& verdict, const Divergence& d) {
  return line("where", place_of(verdict, d)) + line("lane", lane_name(verdict, d.lane)) +
         line("cause", in_lines(cause_text(d))) + step_block(verdict, d);
}

std::string divergence_line(const Verdict& verdict, const Divergence& d) {
  std::string text = fmt::format("lane {}, {}: {}", lane_name(verdict, d.lane), place_of(verdict, d), cause_text(d));
  if (is_of_step(d.cause) && std::isfinite(d.error) && d.expected > 0)
    text += fmt::format(" (error {:.3g}, {:.2g} expected)", d.error, d.expected);
  return text;
}

std::string curve_block(const Verdict& verdict, const Curve& curve, int marked) {
  const std::vector<std::size_t> points = shown(curve.points, marked);
  std::size_t width = std::string_view("worst step").size();
  for (std::size_t i : points) width = std::max(width, name_of(curve.points[i].worst_step).size());
  std::string text =
      fmt::format("\nErrors over the layers, lane {}, {}\n  layer       free   {:<{}}      error   expected\n",
                  lane_name(verdict, curve.lane), name_of(curve.stage), "worst step", width);
  std::size_t next = 0;
  for (std::size_t i : points) {
    if (i > next) text += fmt::format("    ...  {} more\n", i - next);
    const CurvePoint& p = curve.points[i];
    text += fmt::format("  {:>5} {:>10.2e}   {:<{}} {:>10.2e} {:>10.2e}\n", p.layer, p.free_error,
                        name_of(p.worst_step), width, p.step_error, p.expected);
    next = i + 1;
  }
  return text;
}

std::string nonfinite_block(const Verdict& verdict) {
  std::map<std::pair<int, int>, std::vector<const NonfiniteSite*>> lanes;  // by lane and prompt
  for (const NonfiniteSite& at : verdict.diagnosis.nonfinite) lanes[{at.lane, at.prompt}].push_back(&at);
  std::string text;
  for (const auto& [key, sites] : lanes) {
    text += fmt::format("\nNot finite, lane {}, prompt {}\n", lane_name(verdict, key.first),
                        verdict.contract->prompts[static_cast<std::size_t>(key.second)].id);
    for (std::size_t i = 0; i < sites.size(); ++i) {
      if (i + 1 >= most_sites && i + 1 < sites.size()) continue;
      if (i >= most_sites) text += fmt::format("  ... {} sites more\n", i - most_sites + 1);
      text += fmt::format("  {}: {} NaN, {} Inf of {}\n", text_of(sites[i]->site), sites[i]->counts.nan,
                          sites[i]->counts.inf, sites[i]->counts.values);
    }
  }
  return text;
}

std::string oracle_text(const Verdict& verdict) {
  const std::vector<Divergence>& all = verdict.diagnosis.divergences;
  const bool is_finite = all.empty() || all.front().cause != Cause::oracle_not_finite;
  return is_finite ? "" : divergence_line(verdict, all.front());
}

std::string coverage_text(const Verdict& verdict) {
  std::map<int, std::vector<int>, std::greater<>> layers;  // by experts that ran
  for (const LayerCoverage& c : verdict.coverage) layers[c.run()].push_back(c.layer);
  std::string text;
  for (const auto& [run, at] : layers) {
    if (!text.empty()) text += "; ";
    text += fmt::format("{} of {} at ", run, verdict.model.experts);
    text += at.size() > most_layers ? fmt::format("{} layers", at.size())
                                    : fmt::format("layer{} {}", at.size() > 1 ? "s" : "", fmt::join(at, ", "));
  }
  return text;
}

}  // namespace moe_diag
