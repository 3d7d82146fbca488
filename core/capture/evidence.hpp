// SPDX-License-Identifier: MIT
#pragma once

#include <vector>

#include "core/model/program.hpp"
#include "core/plan/plan.hpp"
#include "core/verdict/verdict.hpp"

namespace moe_diag {

// The plan's evidence captures, each narrowed to what failed: of every prompt, the sites where a falsifier fails and
// what the steps that wrote those read. Empty when nothing failed, or nothing of it is within a selection.
std::vector<WatchedCapture> evidence_of(const Plan& plan, const std::vector<Judgement>& judgements,
                                        const Program& program, const ModelConfig& config);

}  // namespace moe_diag
