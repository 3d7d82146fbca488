// SPDX-License-Identifier: MIT
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <vector>

#include "core/run/run.hpp"

namespace moe_diag {

// The arguments of the subcommands that compute.
struct RunSettings {
  std::optional<std::string> out;
  std::vector<std::string> inject;
  bool overwrite = false;
  int threads = 0;
};

void add_run_settings(CLI::App& command, RunSettings& settings);

// A lane that states its threads keeps them; one whose backend has none never reads this.
void set_default_threads(Contract& contract, int threads);

// For one contract, whose output folder is `out`. Throws Error(usage) when a fault does not fit the contract.
RunOptions options_of(const RunSettings& settings, const Contract& contract, const std::string& out);

// The folder of all outputs of one contract, or of several: each then has one below, called as its id. With "{id}" in
// --out, and without --out, it is the same for one and for several.
std::string folder_of(const RunSettings& settings, const Contract& contract, bool one_of_several);

// Runs it with a progress line on a terminal; SIGINT and SIGTERM end it early.
Verdict run_watched(const Contract& contract, PluginHost& host, RunOptions options);

}  // namespace moe_diag
