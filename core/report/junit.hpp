// SPDX-License-Identifier: MIT
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "core/verdict/verdict.hpp"

namespace moe_diag {

// The verdicts as CI servers read test results: a test suite each, a test case a falsifier. Held passes; falsified and
// vacuous are failures, untested is an error, allowed untested is skipped. The XML is what the xUnit plugin of Jenkins
// takes (junit-10.xsd), which is what pytest and Maven Surefire write.
std::string junit_report(std::span<const Verdict> verdicts, std::string_view tool_version);

// The same of a call of which nothing was computed: one test case `(call)` with what is wrong with it.
std::string junit_report(std::string_view mistakes, std::string_view tool_version);

}  // namespace moe_diag
