// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <vector>

#include "core/api/step.hpp"
#include "core/contract/contract.hpp"
#include "core/model/host_ops.hpp"

namespace moe_diag {

// What a step reads for some rows of a pass, on the host.
struct StepInputs {
  std::vector<int> positions;      // of the rows
  int total = 0;                   // length of the whole sequence
  std::array<host::Values, 2> in;  // as Step::in, [rows, ...]; the keys of `scores`: of all positions up to the last
};

// The step's output for those rows in double, [rows, ...]: as the fault makes it, or as it should be without one
// (null). For the operators that is_computed() faults fit. Throws Error(environment) when the inputs do not fit the
// step.
host::Values compute(const Step& step, const ModelConfig& config, const StepInputs& inputs, const FaultSpec* fault);

}  // namespace moe_diag
