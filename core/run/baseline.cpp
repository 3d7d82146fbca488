// SPDX-License-Identifier: MIT
#include "core/run/baseline.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <string>
#include <tuple>

#include "core/api/error.hpp"

namespace moe_diag {
namespace {

// The distance of a metric's value from its best one; nothing for metrics that are either right or wrong.
std::optional<double> error_of(double value, const Bound& bound) {
  if (bound.kind == Bound::Kind::equals) return std::nullopt;
  return bound.kind == Bound::Kind::at_most ? value : 1 - value;
}

// An error that is small beside its bound may grow by chance.
double least_error(const Bound& bound) {
  constexpr double of_bound = 1e-3;
  return std::fabs(bound.kind == Bound::Kind::at_most ? bound.value : 1 - bound.value) * of_bound;
}

using Key = std::tuple<std::string, std::string, std::string, int>;  // falsifier, prompt, stage, layer

std::map<Key, double> values_of(const EarlierVerdict& baseline) {
  std::map<Key, double> values;
  for (const EarlierFalsifier& falsifier : baseline.falsifiers)
    for (const EarlierSample& site : falsifier.sites)
      values[{falsifier.id, site.prompt, site.site.stage, site.site.layer}] = site.value;
  return values;
}

}  // namespace

void compare_with_baseline(Verdict& verdict, const EarlierVerdict& baseline, double worse) {
  const std::map<Key, double> values = values_of(baseline);
  verdict.baseline = baseline.path;
  std::size_t common = 0, all = 0;
  for (std::size_t f = 0; f < verdict.judgements.size(); ++f)
    for (const SiteResult& site : verdict.judgements[f].sites) {
      if (site.samples == 0) continue;
      ++all;
      const std::string& prompt = verdict.contract->prompts[static_cast<std::size_t>(site.prompt)].id;
      const auto before =
          values.find({verdict.judgements[f].spec->id, prompt, std::string(name_of(site.site.stage)), site.site.layer});
      if (before == values.end()) continue;
      ++common;
      const Bound& bound = site.worst.bound;
      const auto now = error_of(site.worst.value, bound), then = error_of(before->second, bound);
      if (!now || !then || !(*now > worse * std::max(*then, least_error(bound)))) continue;
      verdict.moved.push_back({f, site.prompt, site.site, before->second, site.worst.value, *now / *then});
    }
  if (common == 0 && all > 0)
    throw Error(
        ErrorKind::usage,
        fmt::format("--baseline: {}: it has none of the {} sites that were judged: expected the verdict.json of "
                    "the same contract, written by this version",
                    baseline.path, all));
  std::stable_sort(verdict.moved.begin(), verdict.moved.end(),
                   [](const Moved& a, const Moved& b) { return a.times > b.times; });
}

}  // namespace moe_diag
