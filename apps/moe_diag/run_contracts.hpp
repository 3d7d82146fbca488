// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <vector>

#include "apps/moe_diag/commands.hpp"
#include "apps/moe_diag/contract_options.hpp"
#include "apps/moe_diag/exit_code.hpp"
#include "apps/moe_diag/run_outputs.hpp"
#include "apps/moe_diag/run_settings.hpp"

namespace moe_diag {

// Arguments of `run`. `judge`, which writes a contract of its own, fills in the same ones.
struct RunArguments {
  ContractArguments contracts;
  RunSettings settings;
  RunOutputs outputs;
  std::vector<std::string> only, allow_untested;
  bool controls = false, no_explain = false;
  std::string baseline;  // verdict.json of an earlier run; empty: none
  double worse = 1.5;    // times the error that it had
};

void add_baseline_options(CLI::App& command, RunArguments& arguments);

// Reads, checks and runs all contracts, and delivers their verdicts.
ExitCode run_contracts(const RunArguments& arguments, const Context& context);

}  // namespace moe_diag
