// SPDX-License-Identifier: MIT
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "core/run/run.hpp"

namespace moe_diag {

// Where the results of `run` go, beside each contract's output folder.
struct RunOutputs {
  std::string json;   // file; "-": standard output, instead of the reports. Empty: nowhere
  std::string junit;  // file; empty: nowhere
  bool github = false;
  bool details = false;  // -v
};

// Before anything is computed: no file is replaced unasked, nor is a sink's output by the verdict, and what is asked
// for can be written.
void check_outputs(const Contract& contract, const RunOptions& options);
void check_outputs(const RunOutputs& outputs, bool overwrite);
// All that the call reads and writes, sinks left out. Throws Error(usage) when one would replace another.
CallFiles files_of(std::span<const Contract> contracts, std::span<const RunOptions> options, const RunOutputs& outputs);

// One contract's: <out>/verdict.json and the report.
void deliver(const Verdict& verdict, const RunOptions& options, const RunOutputs& outputs);
// Those of all contracts of the call. `several` were named, whether or not all were run.
void deliver_all(std::span<const Verdict> verdicts, bool several, const RunOutputs& outputs);

// To standard output. A reader that went away is no failure of the run; any other is found when main flushes.
void print(std::string_view text);

// $GITHUB_WORKSPACE; empty when it is not set.
std::string workspace();

}  // namespace moe_diag
