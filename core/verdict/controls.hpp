// SPDX-License-Identifier: MIT
#pragma once

#include <optional>

#include "core/model/program.hpp"
#include "core/plan/plan.hpp"
#include "core/recording/site_name.hpp"
#include "core/verdict/verdict.hpp"

namespace moe_diag {

// Where a falsifier must first see a fault: the first site it watches that the fault reaches, in forward order. On a
// lane whose stage is replaced after each step that can only be the fault's own site. Nothing: it can never see it.
std::optional<Site> expected_site(const WatchedFalsifier& watched, const FaultSpec& fault, const RunningLane& lane,
                                  const Program& program);

// Judges the run that had the fault in it, which changed so many values.
ControlResult judge_control(const Judgement& with_fault, const FaultSpec& fault, std::optional<Site> expected,
                            std::int64_t changed);

}  // namespace moe_diag
