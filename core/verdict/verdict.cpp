// SPDX-License-Identifier: MIT
#include "core/verdict/verdict.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "core/contract/metric.hpp"

namespace moe_diag {

std::string_view name_of(Outcome outcome) {
  switch (outcome) {
    case Outcome::held: return "held";
    case Outcome::falsified: return "falsified";
    case Outcome::untested: return "untested";
    case Outcome::vacuous: return "vacuous";
  }
  return "unknown";
}

namespace {

// How far a value lies beyond its bound; negative: within.
double excess(const Bound& bound, double value) {
  switch (bound.kind) {
    case Bound::Kind::at_least: return bound.value - value;
    case Bound::Kind::at_most: return value - bound.value;
    case Bound::Kind::equals: return std::fabs(value - bound.value);
  }
  return 0;
}

double relative_excess(const Sample& s) {
  const double by = excess(s.bound, s.value);
  return by == 0 ? 0 : by / std::fabs(s.bound.value);
}

// How far a sample that fails lies beyond its bound, in proportion to it unless it is 0.
double badness(const Sample& s) {
  if (std::isnan(s.value)) return std::numeric_limits<double>::infinity();
  return s.bound.value == 0 ? excess(s.bound, s.value) : relative_excess(s);
}

// The value in as few digits as leave it on the side that holds.
double rounded(Bound::Kind kind, double value) {
  for (int digits = 6; digits < 17; ++digits) {
    const std::string text = fmt::format("{:.{}g}", value, digits);
    double shorter = 0;
    std::from_chars(text.data(), text.data() + text.size(), shorter);
    if (Bound{kind, shorter}.holds(value)) return shorter;
  }
  return value;
}

}  // namespace

bool is_worse(const Sample& a, const Sample& b) {
  if (std::isnan(a.value) || std::isnan(b.value)) return std::isnan(a.value) && !std::isnan(b.value);
  const bool fails_a = !a.bound.holds(a.value), fails_b = !b.bound.holds(b.value);
  if (fails_a != fails_b) return fails_a;
  const bool alike = a.bound == b.bound;
  if (const double x = relative_excess(a), y = relative_excess(b); !alike && x != y) return x > y;
  if (const double x = excess(a.bound, a.value), y = excess(b.bound, b.value); x != y) return x > y;
  return a.flips.size() > b.flips.size();
}

std::optional<Bound> bound_that_holds(const Judgement& judgement) {
  const SiteResult* first = judgement.leading_failure();
  if (!first) return std::nullopt;
  const Bound& claimed = first->first_failing.bound;
  const Metric metric = judgement.spec->metric;
  const bool larger = info(metric).larger_is_better;
  Bound holds{larger ? Bound::Kind::at_least : Bound::Kind::at_most, larger ? unbounded : -unbounded};
  for (const SiteResult& site : judgement.sites) {
    if (site.samples == 0 || !(site.worst.bound == claimed)) continue;
    if (std::isnan(site.worst.value)) return std::nullopt;
    holds.value = larger ? std::min(holds.value, site.worst.value) : std::max(holds.value, site.worst.value);
  }
  if (std::isinf(holds.value)) return std::nullopt;
  if (!info(metric).whole) holds.value = rounded(holds.kind, holds.value);
  return objection(metric, holds).empty() ? std::optional<Bound>(holds) : std::nullopt;
}

const SiteResult* Judgement::leading_failure() const {
  const auto fails = [](const SiteResult& site) { return site.failing > 0; };
  double most = 0;
  for (const SiteResult& site : sites)
    if (is_local && fails(site)) most = std::max(most, badness(site.worst));
  const auto at = std::find_if(sites.begin(), sites.end(), [&](const SiteResult& site) {
    return fails(site) && (!is_local || badness(site.worst) >= most / 2);
  });
  return at == sites.end() ? nullptr : &*at;
}

const SiteResult* Judgement::worst() const {
  const SiteResult* worst = nullptr;
  for (const SiteResult& s : sites)
    if (s.samples > 0 && (!worst || is_worse(s.worst, worst->worst))) worst = &s;
  return worst;
}

std::int64_t Verdict::count(Outcome outcome) const {
  return std::count_if(judgements.begin(), judgements.end(), [&](const Judgement& j) { return j.outcome == outcome; });
}

std::int64_t Verdict::count_allowed() const {
  return std::count_if(judgements.begin(), judgements.end(), [](const Judgement& j) { return j.allowed; });
}

const Judgement* Verdict::first_divergence() const {
  const Judgement* first = nullptr;
  const auto before = [](const SiteResult& a, const SiteResult& b) {
    return a.prompt != b.prompt ? a.prompt < b.prompt : a.site < b.site;
  };
  for (const Judgement& j : judgements) {
    const SiteResult* site = has_stage(j.spec->metric) ? j.leading_failure() : nullptr;
    if (site && (!first || before(*site, *first->leading_failure()))) first = &j;
  }
  return first;
}

}  // namespace moe_diag
