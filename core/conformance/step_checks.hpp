// SPDX-License-Identifier: MIT
#pragma once

#include <string>

#include "core/conformance/judged_step.hpp"
#include "core/conformance/tried_lane.hpp"

// Checks of single steps, on inputs that are written before.
namespace moe_diag {

Seen steps_are_right(BackendTrial& t);
Seen spans_are_right(BackendTrial& t);
Seen extremes_are_right(BackendTrial& t);
Seen rows_are_separate(BackendTrial& t);
Seen steps_repeat(BackendTrial& t);

// Thrown where something cannot be looked at.
struct NotTried {
  std::string why;
};

// The numerics of a lane; throws NotTried when their rounding is not known.
LaneNumerics numerics_of(const TriedLane& lane);
// The plain operators on inputs as the lane stores them.
LaneNumerics on_inputs_of(const LaneNumerics& lane);

}  // namespace moe_diag
