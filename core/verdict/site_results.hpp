// SPDX-License-Identifier: MIT
#pragma once

#include "core/verdict/verdict.hpp"

namespace moe_diag {

// The judgement's result at the site in that prompt, made when it is not there. Later passes of a prompt come back to
// the sites of the first.
SiteResult& result_at(Judgement& judgement, int prompt, Site site);

// True when something fails at any site of the prompt.
bool fails_in(const Judgement& judgement, int prompt);

// True when `a` is to be shown as the site's worst instead of `b`: it is worse, or has as many values that are not
// finite and is farther off.
bool is_more_telling(Metric metric, const Sample& a, const Sample& b);

// Counts a sample that would be compared with a value of `lane` that is not finite.
void leave_out(Judgement& judgement, const Sample& sample, int lane);

}  // namespace moe_diag
