// SPDX-License-Identifier: MIT
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace moe_diag {

// One thing that core/api/sink.hpp promises in a sink's name.
struct ConformanceCheck {
  std::string promise;
  std::string failure;  // what was seen instead; empty: kept
  std::string note;     // what was not looked at, and why
};

// Tries the sink plugin in the file `path` with runs that never happened, each check in a process and a folder of its
// own, and gives each check to `report` as it ends. `options` are added to what its manifest gives as examples of
// required keys. Stages that the sink refuses as a mistake of the contract are left out. Throws Error: usage when the
// file is no sink by its name or takes no event at all, environment when it is refused.
void check_conformance(const std::string& path, const std::vector<std::pair<std::string, std::string>>& options,
                       const std::function<void(const ConformanceCheck&)>& report);

}  // namespace moe_diag
