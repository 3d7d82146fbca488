// SPDX-License-Identifier: MIT
#pragma once

#include <string>

#include "core/kernel/judge_kernel.hpp"

namespace moe_diag {

// For a person, and for programs: docs/judge-a-kernel.md shows both. `folder`: of the cases, as it was named.
std::string judge_report(const JudgedKernel& judged, const std::string& folder);
std::string judge_json(const JudgedKernel& judged, const std::string& folder, const std::string& tool_version);

}  // namespace moe_diag
