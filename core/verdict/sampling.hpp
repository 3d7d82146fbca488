// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "core/plan/plan.hpp"
#include "core/verdict/comparisons.hpp"
#include "core/verdict/verdict.hpp"

namespace moe_diag {

// A sample that would be compared with a value that is not finite: whatever the lane judged has there says nothing.
struct LeftOut {
  Sample sample;
  int lane = -1;  // that is not finite there
};

// What one row of a site gives a falsifier: one sample for all of it, or one for each expert.
struct Sampled {
  std::vector<Sample> samples;
  std::vector<LeftOut> left_out;
  std::vector<int> experts;          // whose values were there to be judged
  std::int64_t skipped_experts = 0;  // slots of the lane that have no counterpart in the other one
  std::int64_t without_floor = 0;    // the floor's lane went through other experts: counted in the error of the others
  std::int64_t undecided = 0;        // not judged: rounding may have chosen other experts
  std::array<std::int64_t, 3> flips{};  // of routing_real_flips, by FlipKind
};

// Floors of a site over all passes. In a pass of one row a lane may err by little, by luck.
class FloorPool {
 public:
  // The floor, at least the rms over those that were pooled, this one included.
  double with(double floor) {
    squares_ += floor * floor;
    return std::max(floor, std::sqrt(squares_ / ++count_));
  }

 private:
  double squares_ = 0, count_ = 0;
};

// `compared` is of a site that the falsifier watches, and lacks nothing for it. `is_open`: the lane judged went through
// experts that it did not record, and rows are left out whose choice the rounding of the floor's lane may turn.
// `pool`: of the site, where floors of passes are pooled; null: they are not.
Sampled sample_row(const WatchedFalsifier& watched, Comparisons& compared, int row, bool is_open = false,
                   FloorPool* pool = nullptr);

// What a lane does not have that the falsifier needs at this site, as a reason not to judge it: missing is not equal.
// Empty: nothing.
std::string lacking(const WatchedFalsifier& watched, Comparisons& compared);

}  // namespace moe_diag
