// SPDX-License-Identifier: MIT
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/run/output_places.hpp"
#include "core/run/run.hpp"

namespace moe_diag {

// Where the results of `run` go, beside each contract's output folder.
struct RunOutputs {
  std::string json;   // file; "-": standard output, instead of the reports. Empty: nowhere
  std::string junit;  // file; empty: nowhere
  bool github = false;
  bool details = false;                  // -v
  std::vector<std::string> plugin_dirs;  // --plugin-dir, for the commands that a report proposes
};

// Before anything is computed: no file is replaced unasked, and what is asked for can be written.
void check_outputs(const Contract& contract, const RunOptions& options);
void check_outputs(const RunOutputs& outputs, bool overwrite);
// All that the call reads and writes, sinks left out. Throws Error(usage) when one would replace another.
CallFiles files_of(std::span<const Contract> contracts, std::span<const RunOptions> options, const RunOutputs& outputs);

// Adds the files that the command line names.
void add_places(const RunOutputs& outputs, std::vector<WrittenPlace>& places);

// When nothing was computed, for what is wrong with contracts or the command line: JUnit, annotations and the step's
// summary, where they were asked for and can be written. None of `inputs` is: the call may name one by mistake.
void deliver_mistakes(const std::string& mistakes, const RunOutputs& outputs, bool overwrite, CallFiles inputs);
// Writes <out>/verdict.json of a contract that could not be run. The caller has told why.
void deliver_failure(const Verdict& verdict, const RunOptions& options, const RunOutputs& outputs);

// One contract's: <out>/verdict.json and the report.
void deliver(const Verdict& verdict, const RunOptions& options, const RunOutputs& outputs);
// Those of all contracts of the call. `several` were named, whether or not all were run.
void deliver_all(std::span<const Verdict> verdicts, bool several, const RunOutputs& outputs);

// To standard output. A reader that went away is no failure of the run; any other is found when main flushes.
void print(std::string_view text);

// $GITHUB_WORKSPACE; empty when it is not set.
std::string workspace();

}  // namespace moe_diag
