// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <vector>

#include "core/api/model.hpp"
#include "core/api/stage.hpp"
#include "core/api/tensor.hpp"
#include "core/ops/step_case.hpp"

namespace moe_diag {

// Two lanes' rows of one stage, and the routing each of them computed the stage under.
struct Pair {
  Site site;
  Tensor a, b;                  // the same rows
  Tensor routing_a, routing_b;  // moe_router_indices of these rows; only for per-expert stages
  int first_position = 0;       // of row 0
  int experts = 0;              // of the model; only for per-expert stages
};

// What one comparison of a metric is made of.
struct SampleSegments {
  int row = 0;
  int expert = -1;  // -1: not of one expert
  std::vector<Segment> segments;
};

// The samples of one row: one for most stages, one per expert that both lanes chose for the expert stages. Keys after a
// row's own position are left out of the attention stages. Slots of lane a that have no counterpart in lane b are
// `alone`: their expert was not chosen there, was named by a slot before, or does not exist. Their segments say where
// they are in a.
struct RowSamples {
  std::vector<SampleSegments> samples, alone;
};
RowSamples samples_of_row(const Pair& pair, int row);

// Slots of row `row` of a that do not hold an expert that b chose as well. An expert that a row names a second time,
// and an id that is none of the model's experts, is shared with nobody, not even with a lane that has the same ids. So
// the number is the same when the lanes change places.
int routing_flips(const Tensor& a, const Tensor& b, int row, int experts);

}  // namespace moe_diag
