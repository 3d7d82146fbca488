// SPDX-License-Identifier: MIT
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace moe_diag {

// One thing that core/api/sink.hpp promises in a sink's name.
struct ConformanceCheck {
  std::string promise;
  std::string failure;    // what was seen instead; empty: kept
  std::string note;       // what was not looked at, and why
  std::string not_tried;  // why nothing was looked at; empty: it was tried
};

struct ConformanceOptions {
  std::vector<std::pair<std::string, std::string>> sink;  // added to the examples of required keys in its manifest
  std::chrono::milliseconds call_limit{10'000};           // a call that takes longer is broken off, and is a failure
};

// Tries the sink plugin in the file `path` with what a real run gives to sinks (recorded_run.hpp), each check in a
// process and a folder of its own, and gives each check to `report` as it ends. Stages that the sink refuses as a
// mistake of the contract are left out. After a call that does not return, the rest is not tried. Throws Error: usage
// when the file is no sink by its name, environment when it is refused.
void check_conformance(const std::string& path, const ConformanceOptions& options,
                       const std::function<void(const ConformanceCheck&)>& report);

}  // namespace moe_diag
