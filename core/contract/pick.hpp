// SPDX-License-Identifier: MIT
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/contract/contract.hpp"

namespace moe_diag {

// What a pattern of the command line picks falsifiers by: `GLOB` of their ids, `tag:GLOB`, `lane:GLOB`.
struct Pattern {
  enum class Of { id, tag, lane };
  Of of = Of::id;
  std::string glob;

  static Pattern parse(std::string_view text);
  // By id or tag; of a lane nothing is known here.
  bool picks(const FalsifierSpec& falsifier) const;
  bool picks_lane(std::string_view lane) const;
};

// `run --only`: leaves the falsifiers that a pattern picks; all of them when there is no pattern.
// Throws Error(usage) for a pattern that picks nothing in any of the contracts, naming the nearest that it may have
// meant, and for a `lane:`.
void keep_only(std::span<Contract> contracts, const std::vector<std::string>& patterns);

// `run --allow-untested`. Throws Error(usage) for a pattern that picks no falsifier, or for `lane:` no lane, in any of
// the contracts.
std::vector<Pattern> parse_allowed(std::span<const Contract> contracts, const std::vector<std::string>& patterns);

}  // namespace moe_diag
