// SPDX-License-Identifier: MIT
#include "core/verdict/allow.hpp"

#include <algorithm>
#include <string>
#include <string_view>

namespace moe_diag {
namespace {

class Allowance {
 public:
  Allowance(const Verdict& verdict, const std::vector<Pattern>& patterns) : verdict_(verdict), patterns_(patterns) {}

  bool takes(const Judgement& j) const {
    return std::any_of(patterns_.begin(), patterns_.end(), [&](const Pattern& p) { return p.picks(*j.spec); }) ||
           takes_lanes({j.spec->lane, j.spec->against, j.spec->floor});
  }

  // Only when a lane is missing, and every one that is was named.
  bool takes_lanes(const std::vector<std::string>& names) const {
    bool missing = false;
    for (const std::string& name : names) {
      if (!is_absent(name)) continue;
      missing = true;
      if (!takes_lane(name)) return false;
    }
    return missing;
  }

 private:
  const LaneReport* find(std::string_view name) const {
    const auto at =
        std::find_if(verdict_.lanes.begin(), verdict_.lanes.end(), [&](const LaneReport& l) { return l.name == name; });
    return at == verdict_.lanes.end() ? nullptr : &*at;
  }
  bool is_absent(std::string_view name) const {
    const LaneReport* lane = find(name);
    return lane && !lane->absent.empty();
  }
  // The lane, or one on the way to what is missing: what feeds it, and what feeds that.
  bool takes_lane(std::string_view name) const {
    const LaneReport* lane = find(name);
    while (lane) {
      if (std::any_of(patterns_.begin(), patterns_.end(), [&](const Pattern& p) { return p.picks_lane(lane->name); }))
        return true;
      lane = lane->unfed ? find(lane->inputs.empty() ? lane->routing : lane->inputs) : nullptr;
    }
    return false;
  }

  const Verdict& verdict_;
  const std::vector<Pattern>& patterns_;
};

}  // namespace

void allow_untested(Verdict& verdict, const std::vector<Pattern>& patterns) {
  const Allowance allowance(verdict, patterns);
  for (Judgement& j : verdict.judgements) j.allowed = j.outcome == Outcome::untested && allowance.takes(j);
  const bool all = !verdict.judgements.empty() && std::all_of(verdict.judgements.begin(), verdict.judgements.end(),
                                                              [](const Judgement& j) { return j.allowed; });
  const bool anything = std::any_of(patterns.begin(), patterns.end(),
                                    [](const Pattern& p) { return p.of == Pattern::Of::id && p.glob == "*"; });
  for (NotCaptured& missing : verdict.captured_nothing)
    missing.allowed = anything || (missing.lane.empty() ? all : allowance.takes_lanes({missing.lane}));
}

}  // namespace moe_diag
