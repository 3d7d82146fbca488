// SPDX-License-Identifier: MIT
#include "core/explain/causes.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <tuple>

#include "core/explain/model_blocks.hpp"
#include "core/model/program.hpp"
#include "core/verdict/controls.hpp"

namespace moe_diag {
namespace {

constexpr double nan = std::numeric_limits<double>::quiet_NaN();

// What a backend says of its kernels, as far as it is about weights of these types: "Q6_K: f32 dot".
std::string kernel_for(const std::set<std::string_view>& types, const std::string& kernels) {
  std::string text;
  for (std::size_t at = 0; at < kernels.size();) {
    const std::size_t end = std::min(kernels.find(", ", at), kernels.size());
    const std::string_view entry = std::string_view(kernels).substr(at, end - at);
    if (types.count(entry.substr(0, entry.find(':'))) > 0) text.append(text.empty() ? "" : ", ").append(entry);
    at = end + 2;
  }
  return text;
}

// A place of one lane, which has at most one divergence.
struct Place {
  int lane = -1;
  Site site;

  friend bool operator<(const Place& a, const Place& b) { return a.lane != b.lane ? a.lane < b.lane : a.site < b.site; }
};

// An explanation before divergences have numbers.
struct Traced {
  Cause cause = Cause::unexplained;
  std::optional<Place> place = {};
  std::string text = {};
};

class Namer {
 public:
  Namer(Verdict& verdict, const Plan& plan, const Lanes& lanes, const Examiner& examined)
      : verdict_(verdict), plan_(plan), lanes_(lanes), examined_(examined) {}

  void name() {
    // Of a place, the prompt whose step was explained.
    for (const bool explained : {true, false})
      for (const auto& [key, sites] : examined_.findings())
        for (const auto& [site, finding] : sites)
          if (finding.fails && finding.explanation.has_value() == explained && !follows_from_choice(sites, site))
            add_step(key.first, subject(key.second), finding);
    std::vector<Traced> traced;
    for (std::size_t f = 0; f < verdict_.judgements.size(); ++f) traced.push_back(trace(f));
    const std::map<Place, int> numbers = number();
    for (std::size_t f = 0; f < traced.size(); ++f) {
      if (verdict_.judgements[f].outcome != Outcome::falsified) continue;
      const Traced& t = traced[f];
      verdict_.judgements[f].explanation = {t.cause, t.place ? numbers.at(*t.place) : -1, t.text};
    }
    draw_curves();
    list_nonfinite();
  }

 private:
  using Sites = std::map<Site, Finding>;

  const Subject& subject(int index) const { return examined_.subjects()[static_cast<std::size_t>(index)]; }
  const RunningLane& lane(int index) const { return lanes_[static_cast<std::size_t>(index)]; }

  int subject_of(int lane) const {
    for (std::size_t s = 0; s < examined_.subjects().size(); ++s)
      if (examined_.subjects()[s].lane == lane) return static_cast<int>(s);
    return -1;
  }
  const Sites* sites_of(int lane, int prompt) const {
    const auto at = examined_.findings().find({prompt, subject_of(lane)});
    return at == examined_.findings().end() ? nullptr : &at->second;
  }

  // The router's weights follow from its choice: both are outputs of one step.
  static bool follows_from_choice(const Sites& sites, Site site) {
    if (!is(site.stage, Role::choice_weights)) return false;
    const auto choice = sites.find(site.sibling(Role::choice));
    return choice != sites.end() && choice->second.fails;
  }

  Divergence& add_step(int prompt, const Subject& s, const Finding& finding) {
    const auto [at, fresh] = found_.try_emplace({s.lane, finding.site});
    Divergence& d = at->second;
    if (!fresh) {
      // One number for one defect: the worst of all prompts, as in the curves.
      if (!(finding.step_error <= d.error)) {
        d.error = finding.step_error;
        d.expected = finding.expected;
      }
      return d;
    }
    d.lane = s.lane;
    d.prompt = prompt;
    d.position = finding.position;
    d.expert = finding.expert;
    d.site = finding.site;
    d.footprint = finding.footprint.made();
    std::set<std::string_view> types;
    for (const Footprint::OfTensor& tensor : d.footprint.tensors) {
      d.tensors.push_back(fmt::format("{} ({})", tensor.name, tensor.type));
      types.insert(tensor.type);
    }
    if (finding.fails && d.footprint.positions.empty())
      for (const Weight* weight : find_step(plan_.program, finding.site)->weights) {
        d.tensors.push_back(fmt::format("{} ({})", weight->name, name_of(weight->type)));
        types.insert(name_of(weight->type));
      }
    d.kernel = kernel_for(types, lane(s.lane).description.kernels);
    d.error = finding.step_error;
    d.expected = finding.expected;
    d.nonfinite = finding.step_nonfinite;
    for (const RowFlip& row : finding.step_flips)
      if (row.flip.kind == FlipKind::real && !d.flip) d.flip = row.flip;
    name_step(finding, d);
    return d;
  }

  void name_step(const Finding& finding, Divergence& d) const {
    d.cause = finding.explanation ? Cause::plain_operator : Cause::not_tried;
    if (finding.explanation) {
      d.explained = true;
      if (finding.explanation->cause != StepCause::none) d.cause = cause_of(finding.explanation->cause);
      d.text = finding.explanation->text;
      d.factor = finding.explanation->factor;
    }
    const bool nameless = d.cause == Cause::plain_operator || d.cause == Cause::not_tried;
    if (d.flip) {
      d.cause = Cause::routing_real;
      d.text = flip_text(*d.flip) + (d.text.empty() ? "" : "; ") + d.text;
    } else if (nameless && d.nonfinite.count() > 0) {
      d.cause = Cause::nonfinite_origin;
    } else if (d.cause == Cause::not_tried) {
      d.text = "beyond its numerics; other steps of the lane were looked into" + text_of_explained(d);
    }
  }

  // A faulty id says by itself what is wrong.
  static std::string flip_text(const Flip& flip) {
    return text_of(flip) + (flip.is_misnamed() ? "" : ", which does not follow from its own logits");
  }

  // ": layer 0, attn_norm is skipped: not rotated": of the same stage, the first that was looked into.
  std::string text_of_explained(const Divergence& d) const {
    for (const auto& [place, other] : found_)
      if (place.lane == d.lane && place.site.stage == d.site.stage && other.explained)
        return fmt::format(": {} is {}{}{}", text_of(place.site), name_of(other.cause), other.text.empty() ? "" : ": ",
                           other.text);
    return "";
  }

  // ---- why each falsifier is falsified ------------------------------------------------------------------------------

  Traced trace(std::size_t f) {
    const Judgement& judgement = verdict_.judgements[f];
    const WatchedFalsifier& watched = plan_.falsifiers[f];
    if (judgement.outcome != Outcome::falsified) return {};
    if (const std::string why = unexplainable(watched, examined_.oracle()); !why.empty())
      return {Cause::unexplained, {}, why};
    const Sample& sample = judgement.leading_failure()->first_failing;
    if (!sites_of(watched.lane, sample.prompt) || !sites_of(watched.lane, sample.prompt)->count(sample.site))
      return {Cause::unexplained, {}, "the place was not looked at again"};
    const auto& compared = examined_.compared();
    const auto at = std::find_if(compared.begin(), compared.end(), [&](const auto& s) { return s.falsifier == f; });
    if (at == compared.end()) return trace_lane(watched.lane, sample, nan);
    if (at->against >= 0) return trace_sides(watched, sample, *at);
    if (!is_seen_again(*at, verdict_)) return trace_other_values(watched.lane, sample, *at);
    return trace_lane(watched.lane, sample, at->lane_error);
  }

  // Neither lane is the truth: the one that is farther from it is explained.
  Traced trace_sides(const WatchedFalsifier& watched, const Sample& sample, const SideBySide& sides) {
    const std::string &a = lane(watched.lane).name, &b = lane(watched.against).name;
    const double x = sides.lane_error, y = sides.against_error;
    const bool measured = sides.is_measured && !(std::isnan(x) && std::isnan(y));
    if (!measured || std::isnan(x) || y <= x) {
      Traced traced = trace_lane(watched.lane, sample, x);
      if (measured)
        traced.text = fmt::format("{}{}lane {} is the inaccurate side: {:.3g} off the oracle, lane {} {:.3g}",
                                  traced.text, traced.text.empty() ? "" : "; ", a, x, b, y);
      return traced;
    }
    Traced traced = trace_lane(watched.against, sample, y);
    traced.text =
        fmt::format("the reference, lane {}, is the inaccurate side: {:.3g} off the oracle, lane {} {:.3g}; by {}{}{}",
                    b, y, a, x, name_of(traced.cause), traced.text.empty() ? "" : ": ", traced.text);
    traced.cause = Cause::reference;
    return traced;
  }

  // The lane gave other values the second time: what is wrong in these need not be what was wrong in those.
  Traced trace_other_values(int lane, const Sample& sample, const SideBySide& sides) {
    Traced traced = trace_lane(lane, sample, sides.lane_error);
    if (traced.place && is_of_step(found_.at(*traced.place).cause)) return traced;
    return {Cause::unexplained,
            {},
            fmt::format("the lane does not repeat itself: its error there was {:.3g}, and {:.3g} when it ran again",
                        sample.measure.rel_l2(), sides.lane_error)};
  }

  // `total`: the error the lane has at the sample.
  Traced trace_lane(int lane, const Sample& sample, double total) {
    const Place own{lane, sample.site};
    const auto at = found_.find(own);
    const bool finite = !(std::isnan(sample.value) || spoils(lane, sample));
    const auto up = upstream_step(lane, sample, finite);
    if (at != found_.end() && !(up && outweighs(*up, own, sample.prompt, finite))) return {at->second.cause, own, ""};
    if (up) return {finite ? Cause::inherited : Cause::nonfinite_inherited, up, ""};
    if (!finite)
      if (auto origin = first_nonfinite(lane, sample))
        return {origin->site == sample.site ? Cause::nonfinite_origin : Cause::nonfinite_inherited, origin, ""};
    if (auto flip = flip_for(lane, sample)) return {found_.at(*flip).cause, flip, ""};
    return trace_numbers(lane, sample, total);
  }

  // Whether the lane holds NaN or Inf at the sample's site.
  bool spoils(int lane, const Sample& sample) const {
    const Sites* sites = sites_of(lane, sample.prompt);
    const auto at = sites->find(sample.site);
    return at != sites->end() && at->second.free_nonfinite.count() > 0;
  }

  // Whether what a lane has at its own place comes from further up rather than from the step there, which is wrong,
  // too.
  bool outweighs(Place up, Place own, int prompt, bool finite) const {
    const Sites& sites = *sites_of(own.lane, prompt);
    if (is_fed(own.lane) || sites.count(own.site) == 0) return false;
    const Finding &above = sites.at(up.site), &here = sites.at(own.site);
    if (!finite && above.step_nonfinite.count() > 0) return here.step_nonfinite.count() == 0;
    return here.excess() < above.excess() / 2;
  }

  // Of the steps further up that are wrong, the first of those that spoil most. Of values that are not finite, the
  // first that makes such, if one does.
  std::optional<Place> upstream_step(int lane, const Sample& sample, bool finite) const {
    const Sites* sites = sites_of(lane, sample.prompt);
    if (!sites || is_fed(lane)) return upstream_choice(lane, sample);
    std::vector<std::pair<Place, double>> wrong;  // with their excess
    for (const auto& [site, finding] : *sites) {
      const bool before = finding.fails && site < sample.site && finding.position <= sample.position;
      const Place place{lane, follows_from_choice(*sites, site) ? site.sibling(Role::choice) : site};
      if (!before || !reaches(site, sample.site)) continue;
      if (!finite && finding.step_nonfinite.count() > 0) return place;
      wrong.push_back({place, finding.excess()});
    }
    const auto first = foremost(wrong.begin(), wrong.end(), [](const auto& one) { return one.second; });
    return first == wrong.end() ? std::nullopt : std::optional(first->first);
  }

  // On a lane that is fed, the weights alone follow from something: the choice made by the same step.
  std::optional<Place> upstream_choice(int lane, const Sample& sample) const {
    const Place choice{lane, sample.site.sibling(Role::choice)};
    const bool follows = is(sample.site.stage, Role::choice_weights) && found_.count(choice) > 0;
    return follows ? std::optional<Place>(choice) : std::nullopt;
  }

  bool is_fed(int lane) const { return subject(subject_of(lane)).is_fed(); }
  bool is_routed(int lane) const { return lanes_[static_cast<std::size_t>(lane)].routing >= 0; }

  bool reaches(Site from, Site to) const {
    const std::vector<Site> reached = sites_that_depend_on(plan_.program, from);
    return std::find(reached.begin(), reached.end(), to) != reached.end();
  }

  // Where the lane first holds NaN or Inf, though each of its steps is right on the oracle's inputs.
  std::optional<Place> first_nonfinite(int lane, const Sample& sample) {
    for (const auto& [site, finding] : *sites_of(lane, sample.prompt)) {
      if (finding.free_nonfinite.count() == 0) continue;
      Divergence& d = add_step(sample.prompt, subject(subject_of(lane)), finding);
      d.cause = Cause::nonfinite_origin;
      d.position = finding.free_nonfinite.position;
      d.expert = finding.free_nonfinite.expert;
      d.nonfinite = finding.free_nonfinite;
      d.text =
          "on the oracle's inputs the step stays finite" + blocks_of_expert(*find_step(plan_.program, site), d.expert);
      return Place{lane, site};
    }
    return std::nullopt;
  }

  // NaN and Inf in the weights of an expert that the oracle, which is finite, did not choose; empty: there are none.
  static std::string blocks_of_expert(const Step& step, int expert) {
    std::vector<UnsoundBlocks> blocks = nonfinite_blocks({step.weights.begin(), step.weights.end()});
    blocks.erase(
        std::remove_if(blocks.begin(), blocks.end(), [&](const UnsoundBlocks& b) { return b.expert != expert; }),
        blocks.end());
    return text_of_blocks(blocks);
  }

  // Other experts chosen further up: by the same position if there is one, else by one before it.
  std::optional<Place> flip_for(int lane, const Sample& sample) {
    const Finding* chosen = nullptr;
    const RowFlip* flip = nullptr;
    for (const auto& [site, finding] : *sites_of(lane, sample.prompt)) {
      if (sample.site < site) break;
      if (!matters(lane, site, sample.site)) continue;
      for (const RowFlip& row : finding.flips) {
        const bool same = row.position == sample.position;
        // Of other positions a row sees keys and values, which later layers make.
        const bool seen = row.position < sample.position && (sample.site.layer < 0 || site.layer < sample.site.layer);
        if ((!same && !seen) || (flip && (!same || flip->position == sample.position))) continue;
        flip = &row;
        chosen = &finding;
      }
    }
    if (!flip) return std::nullopt;
    const Place place{lane, chosen->site};
    const auto [at, fresh] = found_.try_emplace(place);
    if (fresh) at->second = of_flip(lane, sample.prompt, *chosen, *flip);
    return place;
  }

  // Experts both lanes chose are compared with each other: a choice of the same layer does not change what they give.
  bool matters(int lane, Site choice, Site site) const {
    if (!is(choice.stage, Role::choice) || choice == site) return choice == site;
    if (is_fed(lane) || is_routed(lane)) return false;
    const bool common = is(site.stage, Role::expert_values);
    return !(common && choice.layer == site.layer);
  }

  Divergence of_flip(int lane, int prompt, const Finding& finding, const RowFlip& row) const {
    Divergence d;
    d.cause = row.flip.kind == FlipKind::tie     ? Cause::routing_tie
              : row.flip.kind == FlipKind::drift ? Cause::routing_drift
                                                 : Cause::routing_real;
    d.lane = lane;
    d.prompt = prompt;
    d.position = row.position;
    d.site = finding.site;
    d.expert = row.flip.expert;
    d.flip = row.flip;
    d.error = d.expected = nan;
    d.text = reason_of(row.flip);
    d.text += agreement(lane, prompt, finding.site.layer);
    return d;
  }

  static std::string reason_of(const Flip& flip) {
    const std::string what = choice_text(flip);
    if (flip.is_misnamed()) return what;
    if (!flip.margin || !flip.error) return what + ": the logits there are not finite";
    if (flip.kind == FlipKind::tie)
      return fmt::format("{}: the oracle's margin of {:.3g} is within rounding", what, *flip.margin);
    return fmt::format("{}: the oracle's margin of {:.3g} is {} than the drift of {:.3g} that the logits have there",
                       what, *flip.margin, *flip.margin <= *flip.error ? "smaller" : "larger", *flip.error);
  }

  // Whether the layer's experts agree on the oracle's inputs and routing.
  std::string agreement(int lane, int prompt, int layer) const {
    double worst = 0;
    for (const auto& [site, finding] : *sites_of(lane, prompt))
      if (site.layer == layer && comes_before(site.stage.sibling(Role::choice_weights), site.stage))
        worst = std::max(worst, finding.times);
    if (worst == 0) return "";
    const bool agrees = worst <= failing_error;
    return fmt::format("; with routing forced the layer {}: its steps are within {:.2g} expected errors",
                       agrees ? "agrees" : "does not agree", worst);
  }

  // No step is wrong, no choice differs: what is left are the numbers themselves.
  Traced trace_numbers(int lane, const Sample& sample, double total) const {
    const RunningLane& l = lanes_[static_cast<std::size_t>(lane)];
    const Sites& sites = *sites_of(lane, sample.prompt);
    const std::string numerics = l.numerics();
    if (!has_expected_error(l, plan_.program, lanes_.config()))
      return {Cause::unexplained, {}, fmt::format("no error is known to be expected of the numerics '{}'", numerics)};
    const Finding& here = sites.at(sample.site);
    if (is_fed(lane)) return {Cause::numerics, {}, of_numerics(here, l)};
    const Finding *worst = &here, *largest = &here;  // in expected errors; as it is
    for (const auto& [site, finding] : sites) {
      if (sample.site < site) continue;
      if (finding.times > worst->times) worst = &finding;
      if (finding.step_error > largest->step_error) largest = &finding;
    }
    std::string text = fmt::format(
        "no step up to there makes more than {:.2g} times the error expected of {} ({}); the largest error of a step "
        "is {:.3g} ({}{})",
        worst->times, numerics, text_of(worst->site), largest->step_error, text_of(largest->site),
        kernel_at(l, largest->site));
    text += std::isfinite(total) ? fmt::format("; they add up to {:.3g}", total) : "; they add up";
    return {Cause::drift, {}, text};
  }

  std::string of_numerics(const Finding& finding, const RunningLane& lane) const {
    if (payload_of(finding.site.stage) == Payload::indices) return "the choice follows from the logits";
    return fmt::format(
        "the step's error is {:.3g}, and {:.3g} is expected of {}{}; the claim asks for more than these numerics give",
        finding.step_error, finding.expected, lane.numerics(), kernel_at(lane, finding.site));
  }

  // ", Q4_K: integer dot with Q8_K": how the lane multiplies the weights of a site's step; empty where there are none.
  std::string kernel_at(const RunningLane& lane, Site site) const {
    std::set<std::string_view> types;
    for (const Weight* weight : find_step(plan_.program, site)->weights) types.insert(name_of(weight->type));
    const std::string kernel = kernel_for(types, lane.description.kernels);
    return kernel.empty() ? "" : ", " + kernel;
  }

  // ---- lists --------------------------------------------------------------------------------------------------------

  // Puts the divergences into their order; returns the number of each.
  std::map<Place, int> number() {
    for (const auto& [place, divergence] : found_) verdict_.diagnosis.divergences.push_back(divergence);
    std::vector<Divergence>& list = verdict_.diagnosis.divergences;
    std::stable_sort(list.begin(), list.end(), [](const Divergence& a, const Divergence& b) {
      return a.prompt != b.prompt ? a.prompt < b.prompt : a.site < b.site;
    });
    std::map<Place, int> numbers;
    for (std::size_t i = 0; i < list.size(); ++i) numbers[{list[i].lane, list[i].site}] = static_cast<int>(i);
    return numbers;
  }

  // Each layer has its stage's free error, and the worst of its steps.
  void draw_curves() {
    std::map<std::pair<int, int>, const Finding*> worst;       // by lane and layer
    std::map<std::tuple<int, std::size_t, int>, double> free;  // by lane, stage, layer
    for (const auto& [key, sites] : examined_.findings())
      for (const auto& [site, finding] : sites) {
        if (site.layer < 0) continue;
        const int lane = subject(key.second).lane;
        const Finding*& w = worst[{lane, site.layer}];
        if (!w || finding.times > w->times) w = &finding;
        if (!examined_.draws(site.stage)) continue;
        const auto [at, fresh] = free.try_emplace({lane, site.stage.index(), site.layer}, finding.free_error);
        if (!fresh && !(finding.free_error <= at->second)) at->second = finding.free_error;
      }
    for (const auto& [key, free_error] : free) {
      const auto [lane, index, layer] = key;
      const Stage stage = lanes_.config().stages[index];
      std::vector<Curve>& curves = verdict_.diagnosis.curves;
      if (curves.empty() || curves.back().lane != lane || curves.back().stage != stage)
        curves.push_back({lane, stage, {}});
      const Finding& step = *worst.at({lane, layer});
      curves.back().points.push_back({layer, free_error, step.site.stage, step.step_error, step.expected});
    }
  }

  void list_nonfinite() {
    for (const auto& [key, sites] : examined_.findings())
      for (const auto& [site, finding] : sites)
        if (finding.free_nonfinite.count() > 0)
          verdict_.diagnosis.nonfinite.push_back({subject(key.second).lane, key.first, site, finding.free_nonfinite});
  }

  Verdict& verdict_;
  const Plan& plan_;
  const Lanes& lanes_;
  const Examiner& examined_;
  std::map<Place, Divergence> found_;
};

}  // namespace

void name_causes(Verdict& verdict, const Plan& plan, const Lanes& lanes, const Examiner& examined) {
  verdict.diagnosis = {};
  verdict.diagnosis.made = true;
  Namer(verdict, plan, lanes, examined).name();
}

std::vector<std::pair<int, Site>> leading_places(const Verdict& verdict) {
  std::vector<std::pair<int, Site>> places;
  const auto add = [&](const Judgement& j) {
    if (j.outcome != Outcome::falsified || j.explanation.divergence < 0) return;
    const Divergence& d = verdict.diagnosis.divergences[static_cast<std::size_t>(j.explanation.divergence)];
    places.emplace_back(d.lane, d.site);
  };
  if (const Judgement* first = verdict.first_divergence()) add(*first);
  for (const Judgement& j : verdict.judgements) add(j);
  return places;
}

bool is_seen_again(const SideBySide& sides, const Verdict& verdict) {
  constexpr double as_good_as_equal = 0.01;  // passes may be cut otherwise, and sums be made in another order
  const Measure& before = verdict.judgements[sides.falsifier].leading_failure()->first_failing.measure;
  if (sides.against >= 0 || before.count == 0 || !sides.is_measured) return true;
  const double x = before.rel_l2(), y = sides.lane_error;
  if (std::isnan(x) || std::isnan(y)) return std::isnan(x) && std::isnan(y);
  return x == y || std::fabs(x - y) <= as_good_as_equal * std::max(x, y);
}

void leave_unexplained(Verdict& verdict, const Plan& plan, int oracle, const std::string& why) {
  verdict.diagnosis = {};
  verdict.diagnosis.reason = why;
  for (std::size_t f = 0; f < verdict.judgements.size(); ++f) {
    if (verdict.judgements[f].outcome != Outcome::falsified) continue;
    const std::string own = unexplainable(plan.falsifiers[f], oracle);
    verdict.judgements[f].explanation = {Cause::unexplained, -1, own.empty() ? why : own};
  }
}

std::string unexplainable(const WatchedFalsifier& watched, int oracle) {
  const Metric metric = watched.spec->metric;
  if (!has_stage(metric)) return fmt::format("{} is of a whole pass, not of a step", name_of(metric));
  if (metric == Metric::identical) return "the lane is compared with itself: the oracle's values say nothing about it";
  if (watched.lane == oracle) return "the oracle itself is judged, and nothing is more exact";
  return "";
}

}  // namespace moe_diag
