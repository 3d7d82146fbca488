// SPDX-License-Identifier: MIT
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/alone/digests.hpp"
#include "core/api/error.hpp"
#include "core/contract/contract.hpp"
#include "core/model/model.hpp"
#include "core/plugin/host.hpp"
#include "core/report/plan_report.hpp"
#include "core/run/call_files.hpp"
#include "core/verdict/verdict.hpp"

namespace moe_diag {

// How far a run is: `done` of `total` layers walked by all lanes, controls included, or of what `unit` says.
struct Progress {
  std::string_view what;             // "prompt short", "control 2 of 5"
  std::int64_t done = 0, total = 0;  // 0 of 0: nothing is counted
  std::string_view unit = "layers";
};

// The last model that was opened: contracts of one call that compute the same one open it once.
struct ModelCache {
  std::string source;
  std::shared_ptr<const Model> model;
};

struct RunOptions {
  std::string out;              // folder of all outputs; made before anything is computed. Empty: nothing is written
  bool overwrite = false;       // what is there already may be replaced
  bool is_default_out = false;  // nobody named `out`: what came from an earlier run may be replaced there
  CallFiles files;              // that the call reads and writes, of which sinks may write none
  bool controls = false;        // run every control, too
  bool explain = true;          // when something is falsified, run it again to name the causes
  std::optional<std::uint64_t> explain_memory;  // bytes that what the run computed may be kept in, for explaining;
                                                // none: an eighth of what the lanes leave
  std::vector<FaultSpec> inject;                // faults planted in the run itself; each names its lane
  int threads = 0;                              // default of lanes that take threads; 0: theirs
  std::string_view tool_version;
  std::function<void(const Progress&)> progress;  // may be empty
  std::function<bool()> interrupted;              // asked at every layer; true ends the run. May be empty
  ModelCache* models = nullptr;                   // may be null
  std::chrono::milliseconds slow_call{10'000};    // a sink's call that takes longer is told of while it goes on
  // Told of such a call, on a thread of its own; empty: it goes to standard error.
  std::function<void(const std::string&)> warn;
};

// The whole flow: contract, model, lanes, all prompts in lockstep, verdict. Throws Error only when nothing was judged;
// a failure later on is in Verdict::failure beside what was judged until then, an interruption included.
Verdict run_contract(const Contract& contract, PluginHost& host, const RunOptions& options);

// Digests of all rows that the contract's falsifiers compare with digests, of these lanes or of all when none is named.
// Throws Error: usage when there is none, absent when the model or a lane is not there.
Digests digest_contract(const Contract& contract, const std::vector<std::string>& lanes, PluginHost& host,
                        const RunOptions& options);

// The verdict of a contract that could not be run: all is untested.
Verdict not_run(const Contract& contract, const Error& why);

// Everything but computing: the contract and the faults to inject against its model (when it is there), all controls
// included, and the options of its plugins.
// Throws Error(usage) with all mistakes found. Returns what is absent, a line each.
std::vector<std::string> check_contract(const Contract& contract, PluginHost& host, RunOptions options = {});

// What a run would do, and about how long it would take: a layer of each lane is computed to measure that, no more.
// Throws as check_contract() does; what is absent is in the report.
PlanReport plan_contract(const Contract& contract, PluginHost& host, const RunOptions& options);

}  // namespace moe_diag
