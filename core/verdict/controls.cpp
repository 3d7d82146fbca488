// SPDX-License-Identifier: MIT
#include "core/verdict/controls.hpp"

#include <fmt/format.h>

namespace moe_diag {

std::optional<Site> expected_site(const WatchedFalsifier& watched, const FaultSpec& fault, const RunningLane& lane,
                                  const Program& program) {
  const Site planted{fault.stage, fault.layer};
  const bool routed = lane.routing >= 0 && is_routing(fault.stage);
  if (lane.inputs >= 0 || routed) return watched.sites.contains(planted) ? std::optional<Site>(planted) : std::nullopt;
  for (Site site : sites_that_depend_on(program, planted))
    if (watched.sites.contains(site)) return site;
  return std::nullopt;
}

ControlResult judge_control(const Judgement& with_fault, const FaultSpec& fault, std::optional<Site> expected,
                            std::int64_t changed) {
  ControlResult result{fault.text, false, ""};
  const SiteResult* first = with_fault.leading_failure();
  if (changed == 0) {
    result.message =
        "the fault changed nothing: it was planted where nothing is computed, or makes no difference there";
  } else if (!expected) {
    result.message = "the falsifier watches no site that this fault reaches";
  } else if (!first) {
    const bool holds = with_fault.outcome == Outcome::held;
    result.message = fmt::format("survived: {}, expected it falsified at {}",
                                 holds ? "it still holds" : with_fault.reason, text_of(*expected));
  } else if (first->site != *expected) {
    result.message = fmt::format("falsified first at {}, expected {}", text_of(first->site), text_of(*expected));
  } else {
    result.tripped = true;
    result.message = fmt::format("falsified at {}, value {:.6g}", text_of(first->site), first->worst.value);
  }
  return result;
}

}  // namespace moe_diag
