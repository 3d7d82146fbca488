// SPDX-License-Identifier: MIT
#pragma once

#include "core/plan/plan.hpp"
#include "core/plan/workload.hpp"
#include "core/report/plan_report.hpp"

namespace moe_diag {

// Fills in how long the run would take, from a short measurement of every lane that would run: they must be open.
void forecast(PlanReport& report, const Plan& plan, const Program& program, Lanes& lanes);

}  // namespace moe_diag
