// SPDX-License-Identifier: MIT
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace moe_diag {

// One thing that core/api/sink.hpp or core/api/backend.hpp promises in a plugin's name.
struct ConformanceCheck {
  std::string promise;
  std::string failure;    // what was seen instead; empty: kept
  std::string note;       // what was not looked at, and why
  std::string not_tried;  // why nothing was looked at; empty: it was tried
};

using PluginOptions = std::vector<std::pair<std::string, std::string>>;  // keys and values

struct ConformanceOptions {
  PluginOptions plugin;                          // added to the examples of required keys in its manifest
  std::chrono::milliseconds call_limit{10'000};  // a call that takes longer is broken off, and is a failure
  std::string only = {};                         // of a backend: promises in which this text stands; empty: all
};

// Tries the plugin in the file `path`, each check in a process of its own, and gives each check to `report` as it ends:
// - a sink with what a real run gives to sinks (recorded_run.hpp), each check in a folder of its own. Stages that it
//   refuses as a mistake of the contract are left out.
// - a backend with every step, weight type and number of rows, against the plain operators in double
//   (backend_checks.hpp). Unless `plugin` has numerics, with each of those that its manifest lists.
// After a call that does not return, the rest is not tried. Throws Error: usage when the file is no plugin by its name,
// environment when it is refused.
void check_conformance(const std::string& path, const ConformanceOptions& options,
                       const std::function<void(const ConformanceCheck&)>& report);

}  // namespace moe_diag
