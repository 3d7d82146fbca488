// SPDX-License-Identifier: MIT
#include "core/contract/pick.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/api/error.hpp"
#include "core/text/glob.hpp"
#include "core/text/nearest.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

constexpr std::string_view tag_mark = "tag:", lane_mark = "lane:";

std::vector<std::string> names_of(Pattern::Of of, std::span<const Contract> contracts) {
  std::vector<std::string> names;
  const auto add = [&](const std::string& name) {
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  };
  for (const Contract& contract : contracts) {
    if (of == Pattern::Of::lane)
      for (const LaneSpec& lane : contract.lanes) add(lane.name);
    for (const FalsifierSpec& f : contract.falsifiers) {
      if (of == Pattern::Of::id) add(f.id);
      if (of == Pattern::Of::tag)
        for (const std::string& tag : f.tags) add(tag);
    }
  }
  return names;
}

// A pattern that picks nothing is a misspelling, and would go unseen.
void refuse_idle(std::string_view option, const Pattern& pattern, std::span<const Contract> contracts,
                 bool takes_lanes) {
  const std::vector<std::string> names = names_of(pattern.of, contracts);
  if (std::any_of(names.begin(), names.end(), [&](const auto& name) { return glob_matches(pattern.glob, name); }))
    return;
  const std::string_view what = pattern.of == Pattern::Of::id    ? "falsifier"
                                : pattern.of == Pattern::Of::tag ? "tag of a falsifier"
                                                                 : "lane";
  // A lane or a tag is named with its mark.
  std::string meant;
  for (const auto& [of, mark] : {std::pair{Pattern::Of::lane, lane_mark}, std::pair{Pattern::Of::tag, tag_mark}}) {
    const std::vector<std::string> others = names_of(of, contracts);
    if (pattern.of == Pattern::Of::id && (of == Pattern::Of::tag || takes_lanes) && meant.empty() &&
        std::any_of(others.begin(), others.end(), [&](const auto& name) { return glob_matches(pattern.glob, name); }))
      meant =
          fmt::format(": write '{}{}' for the {}", mark, shown(pattern.glob), of == Pattern::Of::lane ? "lane" : "tag");
  }
  if (!meant.empty())
    throw Error(ErrorKind::usage, fmt::format("{}: '{}' is no falsifier{}", option, shown(pattern.glob), meant));
  throw Error(ErrorKind::usage, fmt::format("{}: {}", option, unknown(what, pattern.glob, names)));
}

}  // namespace

Pattern Pattern::parse(std::string_view text) {
  for (const auto& [mark, of] : {std::pair{tag_mark, Of::tag}, std::pair{lane_mark, Of::lane}})
    if (text.starts_with(mark)) return {of, std::string(text.substr(mark.size()))};
  return {Of::id, std::string(text)};
}

bool Pattern::picks(const FalsifierSpec& falsifier) const {
  const auto matches = [&](const std::string& name) { return glob_matches(glob, name); };
  if (of == Of::tag) return std::any_of(falsifier.tags.begin(), falsifier.tags.end(), matches);
  return of == Of::id && matches(falsifier.id);
}

bool Pattern::picks_lane(std::string_view lane) const { return of == Of::lane && glob_matches(glob, lane); }

void keep_only(std::span<Contract> contracts, const std::vector<std::string>& patterns) {
  if (patterns.empty()) return;
  std::vector<Pattern> parsed;
  for (const std::string& text : patterns) {
    parsed.push_back(Pattern::parse(text));
    if (parsed.back().of == Pattern::Of::lane)
      throw Error(ErrorKind::usage,
                  fmt::format("--only: '{}': falsifiers are selected by their id or by tag:NAME", shown(text)));
    refuse_idle("--only", parsed.back(), contracts, false);
  }
  for (Contract& contract : contracts) {
    const auto left_out = [&](const FalsifierSpec& f) {
      return std::none_of(parsed.begin(), parsed.end(), [&](const Pattern& p) { return p.picks(f); });
    };
    auto& list = contract.falsifiers;
    list.erase(std::remove_if(list.begin(), list.end(), left_out), list.end());
  }
}

std::vector<Pattern> parse_allowed(std::span<const Contract> contracts, const std::vector<std::string>& patterns) {
  std::vector<Pattern> parsed;
  for (const std::string& text : patterns) {
    parsed.push_back(Pattern::parse(text));
    refuse_idle("--allow-untested", parsed.back(), contracts, true);
  }
  return parsed;
}

}  // namespace moe_diag
