// SPDX-License-Identifier: MIT
#pragma once

#include <set>
#include <string>
#include <utility>

#include "core/lane/lanes.hpp"
#include "core/plan/plan.hpp"
#include "core/verdict/verdict.hpp"

namespace moe_diag {

// What a falsifier speaks of and nobody can judge, in words; empty: nothing.

// Before the run: why the falsifier cannot be judged at all.
std::string obstacle_to_judging(const WatchedFalsifier& watched, const Program& program, const Lanes& lanes);

// Of the samples that were left out.
std::string left_out_text(const Judgement& judgement, const Contract& contract);

// Of the experts a falsifier names, those that no row went through in both lanes; `ran` has the others, by layer.
std::string never_run_text(const WatchedFalsifier& watched, const ModelConfig& config,
                           const std::set<std::pair<int, int>>& ran);

// What of a recording was not judged since nobody has what its steps read; empty: nothing.
std::string not_computed_text(const Judgement& judgement);

// What of a falsifier's samples was not judged since the choice of their experts is open; empty: nothing.
std::string undecided_text(const Judgement& judgement);

// Why that many sites were not held against the rounding predicted of one step.
std::string several_steps_text(std::int64_t sites);

}  // namespace moe_diag
