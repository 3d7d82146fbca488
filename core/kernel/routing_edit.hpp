// SPDX-License-Identifier: MIT
#pragma once

#include <string>

#include "core/kernel/case_index.hpp"
#include "core/kernel/span_values.hpp"

namespace moe_diag {

// Changes which experts the rows choose, and says how; the weights of the choice stay by slot. Throws Error(usage)
// where it cannot be done: every row chooses all experts.
std::string edit_routing(CaseRouting routing, Stage choice, int experts, SpanValues& values);

}  // namespace moe_diag
