// SPDX-License-Identifier: MIT
#include "core/verdict/judge.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <tuple>
#include <utility>

#include "core/compare/distribution.hpp"
#include "core/compare/samples.hpp"
#include "core/ops/linear.hpp"
#include "core/ops/predicted.hpp"
#include "core/ops/values.hpp"
#include "core/verdict/controls.hpp"

namespace moe_diag {
namespace {

constexpr double nan = std::numeric_limits<double>::quiet_NaN();

// Of the metrics that compare a run of values, expert by expert.
double value_of(const FalsifierSpec& spec, const Pair& pair, const SampleSegments& sample, const Measure& m) {
  switch (spec.metric) {
    case Metric::cosine_similarity: return m.cosine();
    case Metric::rel_l2: return m.rel_l2();
    case Metric::max_abs_diff: return m.max_diff();
    case Metric::nonfinite_beyond: return static_cast<double>(m.nonfinite_a);
    case Metric::mismatch_fraction: {
      std::int64_t wrong = 0;
      for (const Segment& g : sample.segments) wrong += mismatches(pair.a, g.a, pair.b, g.b, g.n, spec.rtol, spec.atol);
      return static_cast<double>(wrong) / static_cast<double>(m.count);
    }
    case Metric::ulp: {
      double largest = 0;
      for (const Segment& g : sample.segments) {
        const double here = ulp_distance(pair.a, g.a, pair.b, g.b, g.n);
        if (!(here <= largest)) largest = here;
        if (std::isnan(largest)) break;
      }
      return largest;
    }
    default: return nan;
  }
}

// Of the metrics that compare whole rows; none for the others.
std::optional<double> value_of_row(const FalsifierSpec& spec, const Pair& pair, int row) {
  const std::int64_t size = pair.a.shape.row(), at = row * size;
  switch (spec.metric) {
    case Metric::routing_flips: return routing_flips(pair.a, pair.b, row, pair.experts);
    case Metric::argmax_agree: {
      const std::int64_t a = argmax(pair.a, at, size), b = argmax(pair.b, at, size);
      return a < 0 || b < 0 ? nan : a == b;
    }
    case Metric::topk_overlap: return topk_overlap(pair.a, at, pair.b, at, size, spec.k);
    case Metric::kl:
      return is(pair.site.stage, Role::router_probs) ? kl_of_probs(pair.a, at, pair.b, at, size)
                                                     : kl_of_logits(pair.a, at, pair.b, at, size);
    default: return std::nullopt;
  }
}

bool is_of_routing(Metric metric) { return metric == Metric::routing_flips || metric == Metric::routing_real_flips; }

bool is_row_finite(const Tensor& t, int row) {
  const std::int64_t size = t.shape.row();
  return count_nonfinite(t, row * size, size) == 0;
}

double count_nonfinite(const Tensor& a, const std::vector<Segment>& segments) {
  std::int64_t count = 0;
  for (const Segment& s : segments) count += count_nonfinite(a, s.a, s.n);
  return static_cast<double>(count);
}

// Adds the time it lives.
class Stopwatch {
 public:
  explicit Stopwatch(double& seconds) : seconds_(seconds) {}
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;
  ~Stopwatch() { seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

 private:
  double& seconds_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// Of the site in that prompt, made when it is not there. Later passes of a prompt come back to the sites of the first.
SiteResult& result_at(Judgement& judgement, int prompt, Site site) {
  const auto at = std::lower_bound(
      judgement.sites.begin(), judgement.sites.end(), site,
      [&](const SiteResult& r, Site s) { return r.prompt != prompt ? r.prompt < prompt : r.site < s; });
  if (at != judgement.sites.end() && at->prompt == prompt && at->site == site) return *at;
  return *judgement.sites.insert(at, SiteResult{prompt, site, 0, 0, {}, {}});
}

}  // namespace

// What one sighting shows of pairs of lanes, measured once however many falsifiers ask.
class Judge::Comparisons {
 public:
  Comparisons(Sighting& sighting, const Program& program, int experts)
      : sighting_(sighting), program_(program), experts_(experts) {}

  struct Measured {
    SampleSegments segments;
    Measure measure;
  };
  struct Row {
    std::vector<Measured> samples;
    std::vector<SampleSegments> alone;
  };

  // The step that wrote the site.
  const Step& step() {
    if (!step_) step_ = find_step(program_, sighting_.site);
    return *step_;
  }

  // How much the row's one value is less than the terms that it is the sum of; see moe_diag::cancellation().
  double cancellation(int lane, int row) {
    const Tensor result = sighting_.tensor(lane);
    if (result.shape.row() != 1) return 1;
    const Tensor input = sighting_.now(lane, step().in[0]);
    return input ? moe_diag::cancellation(step(), host::values_of(input, row, 1), value_at(result, row)) : 1;
  }

  // What the lanes chose experts by, and what they chose. Tensors are null where a lane does not have the stage.
  const Routing& routing(int lane, int against) {
    const auto [at, fresh] = routings_.try_emplace({lane, against});
    if (fresh)
      at->second = {sighting_.tensor(lane), sighting_.tensor(against), sighting_.now(lane, Role::router_logits),
                    sighting_.now(against, Role::router_logits), experts_};
    return at->second;
  }

  // Whether the lane's choice of experts follows from finite numbers: its weights are NaN where its logits are.
  bool chose_by_numbers(int lane, int row) {
    const auto [at, fresh] = weights_.try_emplace(lane);
    if (fresh) at->second = sighting_.now(lane, Role::choice_weights);
    return !at->second || is_row_finite(at->second, row);
  }

  // Tensors are null where a lane does not have the stage.
  const Pair& pair(int lane, int against) { return entry(lane, against).pair; }

  // The samples of one lane: one for each expert that it chose, or one for all of a row.
  std::vector<SampleSegments> alone(int lane, int row) {
    const Pair& itself = pair(lane, lane);
    const std::int64_t size = itself.a.shape.row();
    if (is_per_expert(itself.site.stage) && !itself.routing_a) return {{row, -1, {{row * size, row * size, size}}}};
    return samples_of_row(itself, row).samples;
  }

  const Row& row(int lane, int against, int row) {
    Entry& e = entry(lane, against);
    std::optional<Row>& measured = e.rows[static_cast<std::size_t>(row)];
    if (measured) return *measured;
    measured.emplace();
    RowSamples samples = samples_of_row(e.pair, row);
    measured->alone = std::move(samples.alone);
    for (SampleSegments& s : samples.samples) {
      Measured m{std::move(s), {}};
      for (const Segment& g : m.segments.segments) m.measure.add(e.pair.a, g.a, e.pair.b, g.b, g.n);
      measured->samples.push_back(std::move(m));
    }
    return *measured;
  }

 private:
  struct Entry {
    Pair pair;
    std::vector<std::optional<Row>> rows;
  };

  Entry& entry(int lane, int against) {
    const auto [at, fresh] = entries_.try_emplace({lane, against});
    Entry& e = at->second;
    if (!fresh) return e;
    e.pair.site = sighting_.site;
    e.pair.first_position = sighting_.position(0);
    e.pair.a = sighting_.tensor(lane);
    e.pair.b = sighting_.tensor(against);
    e.pair.experts = experts_;
    if (is_per_expert(sighting_.site.stage)) {
      e.pair.routing_a = sighting_.now(lane, Role::choice);
      e.pair.routing_b = sighting_.now(against, Role::choice);
    }
    e.rows.resize(static_cast<std::size_t>(sighting_.rows().count));
    return e;
  }

  Sighting& sighting_;
  const Program& program_;
  const int experts_;
  const Step* step_ = nullptr;
  std::map<std::pair<int, int>, Entry> entries_;
  std::map<std::pair<int, int>, Routing> routings_;
  std::map<int, Tensor> weights_;  // of the router, by lane
};

Judge::Judge(const Plan& plan, const Lanes& lanes, int only) : plan_(plan), lanes_(lanes) {
  for (std::size_t f = 0; f < plan.falsifiers.size(); ++f) {
    const WatchedFalsifier& watched = plan.falsifiers[f];
    Judgement j;
    j.spec = watched.spec;
    const int inputs = lanes[static_cast<std::size_t>(watched.lane)].inputs;
    j.is_local = inputs >= 0 && (watched.against < 0 || watched.against == inputs);
    if (!has_floor(watched))
      j.reason = fmt::format("no error is known to be expected of the numerics '{}': name a lane as the floor",
                             lanes[static_cast<std::size_t>(watched.lane)].description.numerics);
    for (int lane : {watched.floor, watched.against, watched.lane})
      if (lane >= 0 && !lanes[static_cast<std::size_t>(lane)].runs())
        j.reason = fmt::format("lane '{}' is absent: {}", lanes[static_cast<std::size_t>(lane)].name,
                               lanes[static_cast<std::size_t>(lane)].absent);
    judged_.push_back(!is_alone(watched.spec->metric) && j.reason.empty() &&
                      (only < 0 || static_cast<std::size_t>(only) == f));
    judgements_.push_back(std::move(j));
  }
  missing_.resize(judgements_.size());
  ran_.resize(judgements_.size());
}

bool Judge::watches(const WatchedFalsifier& falsifier, int prompt, Site site) const {
  return falsifier.sites.contains(site) && !falsifier.positions[static_cast<std::size_t>(prompt)].empty();
}

bool Judge::has_floor(const WatchedFalsifier& watched) const {
  if (watched.spec->metric != Metric::noise_ratio || watched.floor >= 0) return true;
  const std::string& numerics = lanes_[static_cast<std::size_t>(watched.lane)].description.numerics;
  return expected_error(numerics, plan_.program.front(), lanes_.config(), 1).has_value();
}

// Flips are explained by the logits, which a lane keeps for as long as somebody looks at them.
bool Judge::watches_logits(const WatchedFalsifier& falsifier, int prompt, Site site) const {
  return falsifier.spec->metric == Metric::routing_real_flips && is(site.stage, Role::router_logits) &&
         watches(falsifier, prompt, site.sibling(Role::choice));
}

bool Judge::wants(int prompt, int lane, Site site) const {
  for (std::size_t f = 0; f < judged_.size(); ++f) {
    const WatchedFalsifier& watched = plan_.falsifiers[f];
    if (!judged_[f] || (watched.lane != lane && watched.against != lane && watched.floor != lane)) continue;
    if (watches(watched, prompt, site) || watches_logits(watched, prompt, site)) return true;
  }
  return false;
}

void Judge::show(Sighting& sighting) {
  Comparisons comparisons(sighting, plan_.program, lanes_.config().experts);
  for (std::size_t f = 0; f < judged_.size(); ++f) {
    const WatchedFalsifier& watched = plan_.falsifiers[f];
    if (!judged_[f] || !watches(watched, sighting.prompt, sighting.site)) continue;
    const std::vector<int>& positions = watched.positions[static_cast<std::size_t>(sighting.prompt)];
    const auto first = std::lower_bound(positions.begin(), positions.end(), sighting.position(0));
    const auto end = std::lower_bound(first, positions.end(), sighting.position(sighting.rows().count));
    if (first == end || !has_tensors(f, sighting, comparisons)) continue;
    const Stopwatch watch(judgements_[f].seconds);
    result_at(judgements_[f], sighting.prompt, sighting.site);
    for (auto position = first; position != end; ++position)
      judge(f, sighting, comparisons, *position - sighting.position(0));
  }
}

void Judge::note_end(int prompt, int end, const std::string& why) {
  for (std::size_t f = 0; f < judged_.size(); ++f) {
    const std::vector<int>& positions = plan_.falsifiers[f].positions[static_cast<std::size_t>(prompt)];
    if (judged_[f] && !positions.empty() && positions.back() >= end) missing_[f] = why;
  }
}

bool Judge::saw_failing(int prompt, const std::vector<bool>& falsifiers) const {
  const auto is_before = [](const SiteResult& a, const SiteResult& b) { return a.prompt < b.prompt; };
  for (std::size_t f = 0; f < judgements_.size(); ++f) {
    if (!falsifiers[f]) continue;
    const std::vector<SiteResult>& sites = judgements_[f].sites;
    const auto [first, end] =
        std::equal_range(sites.begin(), sites.end(), SiteResult{prompt, {}, 0, 0, {}, {}}, is_before);
    if (std::any_of(first, end, [](const SiteResult& site) { return site.failing > 0; })) return true;
  }
  return false;
}

// False, and remembered as the reason, when there is nothing to judge by: missing is not equal.
bool Judge::has_tensors(std::size_t f, Sighting& sighting, Comparisons& comparisons) {
  const std::string what = lacking(plan_.falsifiers[f], sighting, comparisons);
  if (!what.empty()) missing_[f] = what;
  return what.empty();
}

std::string Judge::lacking(const WatchedFalsifier& watched, Sighting& sighting, Comparisons& comparisons) const {
  const auto lacks = [](const char* whose, Stage stage) {
    return fmt::format("{} lane has no {}", whose, name_of(stage));
  };
  const Stage stage = sighting.site.stage;
  if (!sighting.tensor(watched.lane)) return lacks("the judged", stage);
  if (watched.against < 0) {
    const bool tells_experts = watched.experts.empty() || comparisons.pair(watched.lane, watched.lane).routing_a;
    return tells_experts ? "" : lacks("the judged", stage.sibling(Role::choice));
  }
  if (!sighting.tensor(watched.against)) return lacks("the other", stage);
  if (watched.floor >= 0 && !sighting.tensor(watched.floor)) return lacks("the floor's", stage);
  if (is_per_expert(stage))
    for (int lane : {watched.lane, watched.floor < 0 ? watched.lane : watched.floor}) {
      const Pair& pair = comparisons.pair(lane, watched.against);
      if (!pair.routing_a || !pair.routing_b) return lacks("one", stage.sibling(Role::choice));
    }
  if (watched.spec->metric == Metric::routing_real_flips) {
    const Routing& routing = comparisons.routing(watched.lane, watched.against);
    if (!routing.logits_a || !routing.logits_b) return lacks("one", stage.sibling(Role::router_logits));
  }
  return "";
}

void Judge::judge(std::size_t f, Sighting& sighting, Comparisons& comparisons, int row) {
  const WatchedFalsifier& watched = plan_.falsifiers[f];
  Sample sample;
  sample.prompt = sighting.prompt;
  sample.position = sighting.position(row);
  sample.site = sighting.site;
  sample.bound = watched.bound_at(sighting.site);
  const Metric metric = watched.spec->metric;
  if (watched.against < 0) return judge_alone(f, sighting, comparisons, row, sample);
  if (is_of_routing(metric) && !comparisons.chose_by_numbers(watched.against, row))
    return leave_out(f, sample, watched.against);
  if (metric == Metric::routing_real_flips) {
    sample.flips = flips_of_row(comparisons.routing(watched.lane, watched.against), row);
    for (const Flip& flip : sample.flips) {
      sample.value += flip.kind == FlipKind::real;
      ++judgements_[f].flips[static_cast<std::size_t>(flip.kind)];
    }
    return add_sample(judgements_[f], sample);
  }
  const Pair& pair = comparisons.pair(watched.lane, watched.against);
  if (const auto value = value_of_row(*watched.spec, pair, row)) {
    if (!is_row_finite(pair.b, row)) return leave_out(f, sample, watched.against);
    sample.value = *value;
    if (metric == Metric::routing_flips && *value > 0)
      sample.flips = misnamed_of_row(pair.a, pair.b, row, pair.experts);
    return add_sample(judgements_[f], sample);
  }
  judge_values(f, comparisons, row, sample);
}

// Of the metrics that look at one lane.
void Judge::judge_alone(std::size_t f, Sighting& sighting, Comparisons& comparisons, int row, Sample sample) {
  const WatchedFalsifier& watched = plan_.falsifiers[f];
  const Tensor values = sighting.tensor(watched.lane);
  if (watched.spec->metric == Metric::router_sum_error) {
    const std::int64_t size = values.shape.row();
    sample.value = std::fabs(sum(values, row * size, size) - 1);
    return add_sample(judgements_[f], sample);
  }
  for (const SampleSegments& s : comparisons.alone(watched.lane, row)) {
    if (!watched.watches(s.expert)) continue;
    ran_[f].insert({sample.site.layer, s.expert});
    sample.expert = s.expert;
    sample.value = count_nonfinite(values, s.segments);
    add_sample(judgements_[f], sample);
  }
}

// A sample that would be compared with a value that is not finite: whatever the lane has there says nothing.
void Judge::leave_out(std::size_t f, const Sample& sample, int lane) {
  NotJudged& left_out = judgements_[f].not_judged;
  const auto place = [](const Sample& s) { return std::tuple(s.prompt, s.site, s.position); };
  if (left_out.samples == 0 || place(sample) < place(left_out.first)) {
    left_out.first = sample;
    left_out.lane = lane;
  }
  ++left_out.samples;
}

// A sample for each expert of a row, or one for all of it.
void Judge::judge_values(std::size_t f, Comparisons& comparisons, int row, Sample sample) {
  const WatchedFalsifier& watched = plan_.falsifiers[f];
  const FalsifierSpec& spec = *watched.spec;
  Judgement& judgement = judgements_[f];
  const Pair& pair = comparisons.pair(watched.lane, watched.against);
  const Comparisons::Row& measured = comparisons.row(watched.lane, watched.against, row);
  for (const Comparisons::Measured& m : measured.samples) {
    if (!watched.watches(m.segments.expert)) continue;
    ran_[f].insert({sample.site.layer, m.segments.expert});
    sample.expert = m.segments.expert;
    sample.measure = m.measure;
    if (m.measure.nonfinite_b > 0) {
      leave_out(f, sample, watched.against);
      continue;
    }
    if (spec.metric == Metric::noise_ratio) {
      const auto floor = floor_of(watched, comparisons, sample, row);
      if (!floor) {
        ++judgement.without_floor;
        continue;
      }
      if (std::isnan(*floor)) {
        leave_out(f, sample, watched.floor);
        continue;
      }
      sample.value = noise_ratio(m.measure.rel_l2(), *floor);
    } else {
      sample.value = value_of(spec, pair, m.segments, m.measure);
    }
    add_sample(judgements_[f], sample);
  }
  // What only this lane computed cannot be compared, but it can be seen to be finite.
  const bool by_numbers = measured.alone.empty() || comparisons.chose_by_numbers(watched.against, row);
  sample.measure = {};
  for (const SampleSegments& s : measured.alone) {
    if (!watched.watches(s.expert)) continue;
    ++judgement.skipped_experts;
    sample.expert = s.expert;
    if (!by_numbers) {
      leave_out(f, sample, watched.against);
    } else if (spec.metric == Metric::nonfinite_beyond) {
      sample.value = count_nonfinite(pair.a, s.segments);
      add_sample(judgements_[f], sample);
    }
  }
}

// The error that the sample's is counted in; none when the floor's lane did not compute the expert.
std::optional<double> Judge::floor_of(const WatchedFalsifier& watched, Comparisons& comparisons, const Sample& sample,
                                      int row) const {
  if (watched.floor < 0) {
    const auto expected = expected_error(lanes_[static_cast<std::size_t>(watched.lane)].description.numerics,
                                         comparisons.step(), lanes_.config(), sample.position + 1);
    return expected ? std::optional(*expected * comparisons.cancellation(watched.against, row)) : std::nullopt;
  }
  for (const Comparisons::Measured& m : comparisons.row(watched.floor, watched.against, row).samples)
    if (m.segments.expert == sample.expert) return m.measure.rel_l2();
  return std::nullopt;
}

namespace {

// Of samples with as many values that are not finite, the one that is farther off is worth showing.
bool is_farther_off(Metric metric, const Sample& a, const Sample& b) {
  return metric == Metric::nonfinite_beyond && a.value == b.value && a.measure.rel_l2() > b.measure.rel_l2();
}

}  // namespace

void add_sample(Judgement& j, const Sample& sample) {
  SiteResult& site = result_at(j, sample.prompt, sample.site);
  const bool fails = !sample.bound.holds(sample.value);
  if (site.samples == 0 || is_worse(sample, site.worst) || is_farther_off(j.spec->metric, sample, site.worst))
    site.worst = sample;
  if (fails && site.failing == 0) site.first_failing = sample;
  ++site.samples;
  ++j.samples;
  site.failing += fails;
  j.failing += fails;
}

std::vector<Judgement> Judge::judgements() const {
  std::vector<Judgement> list = judgements_;
  for (std::size_t f = 0; f < list.size(); ++f) {
    std::string missing = missing_[f].empty() ? never_run(f) : missing_[f];
    if (const std::string left_out = left_out_text(list[f]); !left_out.empty()) {
      if (list[f].failing > 0) list[f].remarks.push_back(left_out);
      missing = left_out + (missing.empty() ? "" : "; ") + missing;
    }
    settle(list[f], missing);
  }
  return list;
}

// Of the samples that were not judged; empty: all were.
std::string Judge::left_out_text(const Judgement& j) const {
  if (j.not_judged.samples == 0) return "";
  const Sample& first = j.not_judged.first;
  const std::string& name = lanes_[static_cast<std::size_t>(j.not_judged.lane)].name;
  return fmt::format(
      "{} of {} samples were not judged: {} '{}', which they are compared with, is not finite there, "
      "first at prompt {}, position {}, {}{}",
      j.not_judged.samples, j.samples + j.not_judged.samples, name == plan_.contract->oracle ? "the oracle" : "lane",
      name, plan_.contract->prompts[static_cast<std::size_t>(first.prompt)].id, first.position, text_of(first.site),
      first.expert < 0 ? "" : fmt::format(", expert {}", first.expert));
}

// Of the experts a falsifier names, those that no row went through in both lanes.
std::string Judge::never_run(std::size_t f) const {
  constexpr std::size_t most_named = 4;
  if (!judged_[f]) return "";
  std::map<int, std::vector<int>> layers_of;  // by expert
  for (int expert : plan_.falsifiers[f].experts)
    for (int layer = 0; layer < lanes_.config().layers; ++layer) {
      const auto& sites = plan_.falsifiers[f].sites;
      const Stages& stages = lanes_.config().stages;
      const auto watched = [&](Stage stage) {
        return info(stage).scope == Scope::layer && sites.contains({stage, layer});
      };
      if (std::any_of(stages.begin(), stages.end(), watched) && ran_[f].count({layer, expert}) == 0)
        layers_of[expert].push_back(layer);
    }
  std::string text;
  std::size_t named = 0;
  for (const auto& [expert, layers] : layers_of) {
    if (named++ == most_named) return fmt::format("{}, nor through {} more", text, layers_of.size() - most_named);
    text +=
        fmt::format("{} expert {} at layer{} {}", named == 1 ? "no row of the prompts went through" : ", nor through",
                    expert, layers.size() > 1 ? "s" : "", fmt::join(layers, ", "));
  }
  return text;
}

void settle(Judgement& j, const std::string& missing) {
  if (j.failing > 0) {
    j.outcome = Outcome::falsified;
  } else if (j.samples > 0 && missing.empty()) {
    j.outcome = Outcome::held;
  } else if (j.reason.empty()) {
    j.reason = missing.empty() ? "nothing was judged: no sample reached it" : missing;
  }
}

}  // namespace moe_diag
