// SPDX-License-Identifier: MIT
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "core/verdict/verdict.hpp"

namespace moe_diag {

inline constexpr int verdict_schema_version = 1;

// The verdict for a person: what was decided, the first divergence in a form to paste into a bug report, then a line
// for each falsifier, and what ran. `details` adds every control and where samples failed.
std::string console_report(const Verdict& verdict, bool details);

// The same of a run that only captured.
std::string capture_report(const Verdict& verdict);

// The verdict for programs; docs/verdict-json.md describes it. Non-finite numbers are the strings "nan", "inf", "-inf".
std::string json_report(const Verdict& verdict, std::string_view tool_version);
// Several verdicts of one call in one document, under `verdicts`.
std::string json_report(std::span<const Verdict> verdicts, std::string_view tool_version);

}  // namespace moe_diag
