// SPDX-License-Identifier: MIT
#pragma once

#include <string>

#include "core/kernel/judged_case.hpp"

namespace moe_diag {

// Mistakes that the output alone shows, whatever computed it: only zeros, the rows in another order, one factor on all
// values. Each explains every row that fails; empty: none does.
std::string output_cause(const JudgedCase& judged);

}  // namespace moe_diag
