// SPDX-License-Identifier: MIT
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace moe_diag {

// The words of the command line as CLI11 wants them: without the program, the last first. `help` and `version` are
// taken for the options of that name. Throws Error(usage) for a command that does not exist, with the nearest.
std::vector<std::string> words_for_cli11(int argc, char** argv, const CLI::App& app);

// After a parse that failed: which of the options that were left over does not exist, and the nearest that does; empty
// when no option was left over.
std::string misspelt_option(const CLI::App& app);

}  // namespace moe_diag
