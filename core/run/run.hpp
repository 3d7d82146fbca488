// SPDX-License-Identifier: MIT
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "core/contract/contract.hpp"
#include "core/plugin/host.hpp"
#include "core/report/digests.hpp"
#include "core/verdict/verdict.hpp"

namespace moe_diag {

// How far a run is: `done` of `total` layers walked by all lanes, controls included.
struct Progress {
  std::string_view what;  // "prompt short", "control 2 of 5"
  std::int64_t done = 0, total = 0;
};

struct RunOptions {
  std::string out;                // folder of all outputs; made before anything is computed. Empty: nothing is written
  bool overwrite = false;         // captures of earlier runs may be replaced
  bool controls = false;          // run every control, too
  std::vector<FaultSpec> inject;  // faults planted in the run itself; each names its lane
  int threads = 0;                // default of lanes that take threads; 0: theirs
  std::string_view tool_version;
  std::function<void(const Progress&)> progress;  // may be empty
};

// The whole flow: contract, model, lanes, all prompts in lockstep, verdict. Throws Error only when nothing was judged;
// a failure later on is in Verdict::failure beside what was judged until then.
Verdict run_contract(const Contract& contract, PluginHost& host, const RunOptions& options);

// Digests of all rows that the contract's falsifiers compare with digests, of these lanes or of all when none is named.
// Throws Error: usage when there is none, absent when the model or a lane is not there.
Digests digest_contract(const Contract& contract, const std::vector<std::string>& lanes, PluginHost& host,
                        const RunOptions& options);

// Everything but computing: the contract against its model (when it is there) and the options of its plugins.
// Throws Error(usage) with all mistakes found. Returns what is absent, a line each.
std::vector<std::string> check_contract(const Contract& contract, PluginHost& host);

}  // namespace moe_diag
