// SPDX-License-Identifier: MIT
#include "core/verdict/verdict.hpp"

#include <algorithm>

#include "core/verdict/judge.hpp"

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

const SiteResult* Judgement::first_failing() const {
  const auto at = std::find_if(sites.begin(), sites.end(), [](const SiteResult& s) { return s.failing > 0; });
  return at == sites.end() ? nullptr : &*at;
}

const SiteResult* Judgement::worst() const {
  const SiteResult* worst = nullptr;
  for (const SiteResult& s : sites)
    if (s.samples > 0 && (!worst || is_worse(spec->bound, s.worst.value, worst->worst.value))) worst = &s;
  return worst;
}

std::int64_t Verdict::count(Outcome outcome) const {
  return std::count_if(judgements.begin(), judgements.end(), [&](const Judgement& j) { return j.outcome == outcome; });
}

const Judgement* Verdict::first_divergence() const {
  const Judgement* first = nullptr;
  const auto before = [](const SiteResult& a, const SiteResult& b) {
    return a.prompt != b.prompt ? a.prompt < b.prompt : a.site < b.site;
  };
  for (const Judgement& j : judgements) {
    const SiteResult* site = has_stage(j.spec->metric) ? j.first_failing() : nullptr;
    if (site && (!first || before(*site, *first->first_failing()))) first = &j;
  }
  return first;
}

}  // namespace moe_diag
