// SPDX-License-Identifier: MIT
#pragma once

#include <span>
#include <vector>

#include "core/lane/lanes.hpp"
#include "core/model/program.hpp"

namespace moe_diag {

// All that a position has of those before it are their keys and values. Where a lane's are off the oracle's by more
// than `out_of_line` times as much as those of positions that were looked at, something may be wrong that is not wrong
// there. That none are says nothing: errors of coarse numerics leave no room for ten times as much.
inline constexpr double out_of_line = 10;

// Such positions before those that were looked at, ascending: once they are looked at as well, no other is out of line.
// Both lanes have run the pass over `looked_at`, of these steps. A position's error is the rel_l2 of its row; the unit
// is the largest of those looked at in the same layer or further up. What is out of line comes `rows` at a time.
std::vector<int> out_of_line_before(Stretch looked_at, int lane, int oracle, Lanes& lanes, std::span<const Step> steps,
                                    int rows);

}  // namespace moe_diag
