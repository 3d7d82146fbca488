// SPDX-License-Identifier: MIT
#include "core/capture/evidence.hpp"

#include <map>

namespace moe_diag {
namespace {

// By prompt.
std::map<int, SiteSet> sites_of_failure(const std::vector<Judgement>& judgements, const Program& program,
                                        const ModelConfig& config) {
  std::map<int, SiteSet> failed;
  for (const Judgement& j : judgements) {
    if (j.outcome != Outcome::falsified || !has_stage(j.spec->metric)) continue;
    for (const SiteResult& result : j.sites) {
      if (result.failing == 0) continue;
      SiteSet& sites = failed.try_emplace(result.prompt, config).first->second;
      sites.insert(result.site);
      for (Site input : inputs_of(program, result.site)) sites.insert(input);
    }
  }
  return failed;
}

// What both hold, of one prompt; looks at nothing when that is empty.
WatchedCapture narrowed(const WatchedCapture& capture, int prompt, const SiteSet& failed, const ModelConfig& config) {
  WatchedCapture part{capture.spec, capture.lanes, capture.sinks, SiteSet(config), {}};
  part.positions.resize(capture.positions.size());
  const auto p = static_cast<std::size_t>(prompt);
  for (Site site : failed.in_forward_order())
    if (capture.sites.contains(site)) {
      part.sites.insert(site);
      part.positions[p] = capture.positions[p];
    }
  return part;
}

}  // namespace

std::vector<WatchedCapture> evidence_of(const Plan& plan, const std::vector<Judgement>& judgements,
                                        const Program& program, const ModelConfig& config) {
  std::vector<WatchedCapture> evidence;
  if (plan.evidence.empty()) return evidence;
  for (const auto& [prompt, failed] : sites_of_failure(judgements, program, config))
    for (const WatchedCapture& capture : plan.evidence) {
      WatchedCapture part = narrowed(capture, prompt, failed, config);
      if (!part.positions[static_cast<std::size_t>(prompt)].empty()) evidence.push_back(std::move(part));
    }
  return evidence;
}

}  // namespace moe_diag
