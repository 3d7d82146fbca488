// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <vector>

#include "core/verdict/verdict.hpp"

namespace moe_diag {

// The commands and options that come next after a run that failed, a line each: `repro` for a step that is wrong, the
// `--allow-untested` that fits what is absent. Empty when there is nothing to propose.
std::string next_steps(const Verdict& verdict, const std::string& verdict_file,
                       const std::vector<std::string>& plugin_dirs);

}  // namespace moe_diag
