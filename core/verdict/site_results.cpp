// SPDX-License-Identifier: MIT
#include "core/verdict/site_results.hpp"

#include <algorithm>
#include <tuple>

namespace moe_diag {

SiteResult& result_at(Judgement& judgement, int prompt, Site site) {
  const auto at = std::lower_bound(
      judgement.sites.begin(), judgement.sites.end(), site,
      [&](const SiteResult& r, Site s) { return r.prompt != prompt ? r.prompt < prompt : r.site < s; });
  if (at != judgement.sites.end() && at->prompt == prompt && at->site == site) return *at;
  return *judgement.sites.insert(at, SiteResult{prompt, site, 0, 0, {}, {}, {}});
}

bool fails_in(const Judgement& judgement, int prompt) {
  const auto is_before = [](const SiteResult& a, const SiteResult& b) { return a.prompt < b.prompt; };
  const auto [first, end] = std::equal_range(judgement.sites.begin(), judgement.sites.end(),
                                             SiteResult{prompt, {}, 0, 0, {}, {}, {}}, is_before);
  return std::any_of(first, end, [](const SiteResult& site) { return site.failing > 0; });
}

bool is_more_telling(Metric metric, const Sample& a, const Sample& b) {
  const bool as_many = metric == Metric::nonfinite_beyond && a.value == b.value;
  return is_worse(a, b) || (as_many && a.measure.rel_l2() > b.measure.rel_l2());
}

void leave_out(Judgement& judgement, const Sample& sample, int lane) {
  NotJudged& left_out = judgement.not_judged;
  const auto place = [](const Sample& s) { return std::tuple(s.prompt, s.site, s.position); };
  if (left_out.samples == 0 || place(sample) < place(left_out.first)) {
    left_out.first = sample;
    left_out.lane = lane;
  }
  ++left_out.samples;
}

}  // namespace moe_diag
