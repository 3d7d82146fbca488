// SPDX-License-Identifier: MIT
#pragma once

#include "core/contract/contract.hpp"
#include "core/model/model.hpp"
#include "core/repro/repro.hpp"
#include "core/repro/seen_step.hpp"

namespace moe_diag {

// The step of a lane as it was seen in a run.
struct KernelCaseParts {
  const Model& model;
  const Contract& contract;
  const SeenStep& seen;
  const LaneSpec& lane;
  const std::string& numerics;  // of its backend
  Site site;
  int position = 0;  // that fails
};

// Writes the step as cases for a kernel of one's own, as `moe-diag cases` does: the failing position alone, and all of
// its pass, each with what the lane made of it. Throws Error(usage) for steps and numerics that such cases do not take.
Repro write_kernel_case(const KernelCaseParts& parts, const ReproOptions& options);

}  // namespace moe_diag
