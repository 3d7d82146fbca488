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

double value_of(Metric metric, const Measure& m) {
  switch (metric) {
    case Metric::cosine_similarity: return m.cosine();
    case Metric::rel_l2: return m.rel_l2();
    case Metric::max_abs_diff: return m.max_diff();
    case Metric::nonfinite: return static_cast<double>(m.nonfinite_new);
    default: return nan;
  }
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
    int skipped = 0;
  };

  const Pair& pair(int lane, int against) { return entry(lane, against).pair; }

  const Row& row(int lane, int against, int row) {
    Entry& e = entry(lane, against);
    std::optional<Row>& measured = e.rows[static_cast<std::size_t>(row)];
    if (measured) return *measured;
    measured.emplace();
    RowSamples samples = samples_of_row(e.pair, row);
    measured->skipped = samples.skipped;
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
    for (int lane : {watched.lane, watched.against})
      if (lane >= 0 && !lanes[static_cast<std::size_t>(lane)].runs())
        j.reason = fmt::format("lane '{}' is absent: {}", lanes[static_cast<std::size_t>(lane)].name,
                               lanes[static_cast<std::size_t>(lane)].absent);
    judged_.push_back(j.reason.empty() && (only < 0 || static_cast<std::size_t>(only) == f));
    judgements_.push_back(std::move(j));
  }
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
    judgements_[f].sites.push_back({sighting.prompt, sighting.site, 0, 0, {}});
    for (int position : watched.positions[static_cast<std::size_t>(sighting.prompt)]) {
      const int row = position - sighting.position(0);
      if (row >= 0 && row < sighting.rows().count) judge(f, sighting, comparisons, row);
    }
  }
}

void Judge::judge(std::size_t f, Sighting& sighting, Comparisons& comparisons, int row) {
  const WatchedFalsifier& watched = plan_.falsifiers[f];
  const FalsifierSpec& spec = *watched.spec;
  Sample sample;
  sample.prompt = sighting.prompt;
  sample.position = sighting.position(row);
  sample.site = sighting.site;

  const auto record_value = [&](double value) {
    sample.value = value;
    record(f, sample);
  };
  if (watched.against < 0) {
    const Tensor a = sighting.tensor(watched.lane);
    const std::int64_t size = a.shape.row(), at = row * size;
    const bool sums = spec.metric == Metric::router_sum_error;
    return record_value(sums ? std::fabs(sum(a, at, size) - 1) : static_cast<double>(count_nonfinite(a, at, size)));
  }
  const Pair& pair = comparisons.pair(watched.lane, watched.against);
  const std::int64_t size = pair.a.shape.row(), at = row * size;
  if (spec.metric == Metric::routing_flips) return record_value(routing_flips(pair.a, pair.b, row));
  if (spec.metric == Metric::argmax_agree) {
    const std::int64_t a = argmax(pair.a, at, size), b = argmax(pair.b, at, size);
    return record_value(a < 0 || b < 0 ? nan : a == b);
  }
  const Comparisons::Row& measured = comparisons.row(watched.lane, watched.against, row);
  judgements_[f].skipped_experts += measured.skipped;
  for (const Comparisons::Measured& m : measured.samples) {
    sample.expert = m.segments.expert;
    sample.measure = m.measure;
    if (spec.metric == Metric::mismatch_fraction) {
      std::int64_t wrong = 0;
      for (const Segment& g : m.segments.segments)
        wrong += mismatches(pair.a, g.a, pair.b, g.b, g.n, spec.rtol, spec.atol);
      record_value(static_cast<double>(wrong) / static_cast<double>(m.measure.count));
    } else {
      record_value(value_of(spec.metric, m.measure));
    }
  }
}

void Judge::record(std::size_t f, const Sample& sample) {
  Judgement& j = judgements_[f];
  SiteResult& site = j.sites.back();
  const Bound& bound = j.spec->bound;
  const bool fails = !bound.holds(sample.value);
  if (site.samples == 0 || is_worse(bound, sample.value, site.worst.value)) site.worst = sample;
  ++site.samples;
  ++j.samples;
  site.failing += fails;
  j.failing += fails;
}

std::vector<Judgement> Judge::judgements() const {
  std::vector<Judgement> list = judgements_;
  for (Judgement& j : list) {
    if (j.samples == 0) {
      j.outcome = Outcome::untested;
      if (j.reason.empty()) j.reason = "nothing was judged: no sample reached it";
    } else {
      j.outcome = j.failing > 0 ? Outcome::falsified : Outcome::held;
    }
  }
  return list;
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
