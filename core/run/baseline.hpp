// SPDX-License-Identifier: MIT
#pragma once

#include "core/run/earlier_verdict.hpp"
#include "core/verdict/verdict.hpp"

namespace moe_diag {

// Holds each site of each falsifier against the same in an earlier verdict, and notes those whose error is `worse`
// times as large, though it is within its bound. Throws Error(usage) when the two have no site in common.
void compare_with_baseline(Verdict& verdict, const EarlierVerdict& baseline, double worse);

}  // namespace moe_diag
