// SPDX-License-Identifier: MIT
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "apps/moe_diag/run_contracts.hpp"
#include "core/run/recording_contract.hpp"

namespace moe_diag {

// The arguments of `judge MODEL DUMP`.
struct JudgeRecordingArguments {
  RecordingJudge judge;
  std::string contract;  // file that is written and run; empty: beside where the call is made, named after the dump
  RunArguments run;
};

// The options that judging the cases of a kernel does not have.
std::vector<CLI::Option*> add_judge_recording_options(CLI::App& command, JudgeRecordingArguments& arguments);

// Writes the contract, and runs it.
ExitCode judge_recording(JudgeRecordingArguments& arguments, const Context& context);

}  // namespace moe_diag
