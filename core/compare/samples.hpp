// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/api/model.hpp"
#include "core/api/stage.hpp"
#include "core/api/tensor.hpp"

namespace moe_diag {

// Two lanes' rows of one stage, and the routing each of them computed the stage under.
struct Pair {
  Site site;
  Tensor a, b;                  // the same rows
  Tensor routing_a, routing_b;  // moe_router_indices of these rows; only for per-expert stages
  int first_position = 0;       // of row 0
};

// Elements to be compared together: `n` of them, at `a` in one tensor and at `b` in the other.
struct Segment {
  std::int64_t a = 0, b = 0, n = 0;
};

// What one comparison of a metric is made of.
struct SampleSegments {
  int row = 0;
  int expert = -1;  // -1: not of one expert
  std::vector<Segment> segments;
};

// The samples of one row: one for most stages, one per expert that both lanes chose for the expert stages. Keys after a
// row's own position are left out of the attention stages. Slots of experts that only lane a chose have nothing to be
// compared with: they are `alone`, and their segments say where they are in a.
struct RowSamples {
  std::vector<SampleSegments> samples, alone;
};
RowSamples samples_of_row(const Pair& pair, int row);

// Experts of row `row` of a that b did not choose.
int routing_flips(const Tensor& a, const Tensor& b, int row);

}  // namespace moe_diag
