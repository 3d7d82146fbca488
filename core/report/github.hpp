// SPDX-License-Identifier: MIT
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "core/verdict/verdict.hpp"

namespace moe_diag {

// What GitHub Actions shows beside a change: workflow commands for standard output, at the contract's line of what did
// not hold. Falsified and vacuous are errors, untested and not captured are warnings; ten at most, the rest is counted
// in a notice. Paths are relative to `workspace` ($GITHUB_WORKSPACE; may be empty) where they lie in it.
std::string github_annotations(std::span<const Verdict> verdicts, std::string_view workspace);

// The same of the message of an Error(usage): its "file:line:column: what" lines.
std::string github_annotations(std::string_view mistakes, std::string_view workspace);

// The outcomes as a table in Markdown, for the file that $GITHUB_STEP_SUMMARY names.
std::string github_summary(std::span<const Verdict> verdicts);
// The same of a call of which nothing was computed: what is wrong with it.
std::string github_summary(std::string_view mistakes);

}  // namespace moe_diag
