// SPDX-License-Identifier: MIT
#include "core/verdict/judge.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <utility>

#include "core/compare/samples.hpp"

namespace moe_diag {
namespace {

constexpr double nan = std::numeric_limits<double>::quiet_NaN();

double value_of(const FalsifierSpec& spec, const Pair& pair, const SampleSegments& sample, const Measure& m) {
  switch (spec.metric) {
    case Metric::cosine_similarity: return m.cosine();
    case Metric::rel_l2: return m.rel_l2();
    case Metric::max_abs_diff: return m.max_diff();
    case Metric::nonfinite: return static_cast<double>(m.nonfinite_new);
    case Metric::mismatch_fraction: {
      std::int64_t wrong = 0;
      for (const Segment& g : sample.segments) wrong += mismatches(pair.a, g.a, pair.b, g.b, g.n, spec.rtol, spec.atol);
      return static_cast<double>(wrong) / static_cast<double>(m.count);
    }
    default: return nan;
  }
}

// Of the metrics that look at one lane.
double value_alone(Metric metric, const Tensor& a, int row) {
  const std::int64_t size = a.shape.row(), at = row * size;
  if (metric == Metric::router_sum_error) return std::fabs(sum(a, at, size) - 1);
  return static_cast<double>(count_nonfinite(a, at, size));
}

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
  explicit Comparisons(Sighting& sighting) : sighting_(sighting) {}

  struct Measured {
    SampleSegments segments;
    Measure measure;
  };
  struct Row {
    std::vector<Measured> samples;
    std::vector<SampleSegments> alone;
  };

  // Tensors are null where a lane does not have the stage.
  const Pair& pair(int lane, int against) { return entry(lane, against).pair; }

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
    if (is_per_expert(sighting_.site.stage)) {
      e.pair.routing_a = sighting_.now(lane, Stage::moe_router_indices);
      e.pair.routing_b = sighting_.now(against, Stage::moe_router_indices);
    }
    e.rows.resize(static_cast<std::size_t>(sighting_.rows().count));
    return e;
  }

  Sighting& sighting_;
  std::map<std::pair<int, int>, Entry> entries_;
};

Judge::Judge(const Plan& plan, const Lanes& lanes, int only) : plan_(plan) {
  for (std::size_t f = 0; f < plan.falsifiers.size(); ++f) {
    const WatchedFalsifier& watched = plan.falsifiers[f];
    Judgement j;
    j.spec = watched.spec;
    for (int lane : {watched.against, watched.lane})
      if (lane >= 0 && !lanes[static_cast<std::size_t>(lane)].runs())
        j.reason = fmt::format("lane '{}' is absent: {}", lanes[static_cast<std::size_t>(lane)].name,
                               lanes[static_cast<std::size_t>(lane)].absent);
    judged_.push_back(!is_solo(watched.spec->metric) && j.reason.empty() &&
                      (only < 0 || static_cast<std::size_t>(only) == f));
    judgements_.push_back(std::move(j));
  }
  missing_.resize(judgements_.size());
}

bool Judge::watches(const WatchedFalsifier& falsifier, int prompt, Site site) const {
  return falsifier.sites.contains(site) && !falsifier.positions[static_cast<std::size_t>(prompt)].empty();
}

bool Judge::wants(int prompt, int lane, Site site) const {
  for (std::size_t f = 0; f < judged_.size(); ++f) {
    const WatchedFalsifier& watched = plan_.falsifiers[f];
    if (judged_[f] && (watched.lane == lane || watched.against == lane) && watches(watched, prompt, site)) return true;
  }
  return false;
}

void Judge::show(Sighting& sighting) {
  Comparisons comparisons(sighting);
  for (std::size_t f = 0; f < judged_.size(); ++f) {
    const WatchedFalsifier& watched = plan_.falsifiers[f];
    if (!judged_[f] || !watches(watched, sighting.prompt, sighting.site)) continue;
    const std::vector<int>& positions = watched.positions[static_cast<std::size_t>(sighting.prompt)];
    const auto first = std::lower_bound(positions.begin(), positions.end(), sighting.position(0));
    const auto end = std::lower_bound(first, positions.end(), sighting.position(sighting.rows().count));
    if (first == end || !has_tensors(f, sighting, comparisons)) continue;
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

// False, and remembered as the reason, when a lane does not have the stage: missing is not equal.
bool Judge::has_tensors(std::size_t f, Sighting& sighting, Comparisons& comparisons) {
  const WatchedFalsifier& watched = plan_.falsifiers[f];
  const auto lacks = [&](const char* whose) {
    missing_[f] = fmt::format("{} lane has no {}", whose, name_of(sighting.site.stage));
    return false;
  };
  if (!sighting.tensor(watched.lane)) return lacks("the judged");
  if (watched.against < 0) return true;
  if (!sighting.tensor(watched.against)) return lacks("the other");
  if (!is_per_expert(sighting.site.stage)) return true;
  const Pair& pair = comparisons.pair(watched.lane, watched.against);
  return pair.routing_a && pair.routing_b ? true : lacks("one");
}

void Judge::judge(std::size_t f, Sighting& sighting, Comparisons& comparisons, int row) {
  const WatchedFalsifier& watched = plan_.falsifiers[f];
  Sample sample;
  sample.prompt = sighting.prompt;
  sample.position = sighting.position(row);
  sample.site = sighting.site;

  const auto record_value = [&](double value) {
    sample.value = value;
    add_sample(judgements_[f], sample);
  };
  if (watched.against < 0) return record_value(value_alone(watched.spec->metric, sighting.tensor(watched.lane), row));
  const Pair& pair = comparisons.pair(watched.lane, watched.against);
  const std::int64_t size = pair.a.shape.row(), at = row * size;
  if (watched.spec->metric == Metric::routing_flips) return record_value(routing_flips(pair.a, pair.b, row));
  if (watched.spec->metric == Metric::argmax_agree) {
    const std::int64_t a = argmax(pair.a, at, size), b = argmax(pair.b, at, size);
    return record_value(a < 0 || b < 0 ? nan : a == b);
  }
  const Comparisons::Row& measured = comparisons.row(watched.lane, watched.against, row);
  for (const Comparisons::Measured& m : measured.samples) {
    sample.expert = m.segments.expert;
    sample.measure = m.measure;
    record_value(value_of(*watched.spec, pair, m.segments, m.measure));
  }
  judgements_[f].skipped_experts += static_cast<std::int64_t>(measured.alone.size());
  if (watched.spec->metric != Metric::nonfinite) return;
  // What only this lane computed cannot be compared, but it can be seen to be finite.
  sample.measure = {};
  for (const SampleSegments& s : measured.alone) {
    sample.expert = s.expert;
    record_value(static_cast<double>(count_nonfinite(pair.a, s.segments[0].a, s.segments[0].n)));
  }
}

void add_sample(Judgement& j, const Sample& sample) {
  SiteResult& site = result_at(j, sample.prompt, sample.site);
  const Bound& bound = j.spec->bound;
  const bool fails = !bound.holds(sample.value);
  if (site.samples == 0 || is_worse(bound, sample.value, site.worst.value)) site.worst = sample;
  if (fails && site.failing == 0) site.first_failing = sample;
  ++site.samples;
  ++j.samples;
  site.failing += fails;
  j.failing += fails;
}

std::vector<Judgement> Judge::judgements() const {
  std::vector<Judgement> list = judgements_;
  for (std::size_t f = 0; f < list.size(); ++f) settle(list[f], missing_[f]);
  return list;
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

bool is_worse(const Bound& bound, double a, double b) {
  if (std::isnan(b)) return false;
  if (std::isnan(a)) return true;
  switch (bound.kind) {
    case Bound::Kind::at_least: return a < b;
    case Bound::Kind::at_most: return a > b;
    case Bound::Kind::equals: return std::fabs(a - bound.value) > std::fabs(b - bound.value);
  }
  return false;
}

}  // namespace moe_diag
