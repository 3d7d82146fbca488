// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>

#include "core/forward/program.hpp"
#include "core/lane/lanes.hpp"
#include "core/plan/workload.hpp"

namespace moe_diag {

// How fast a lane is, in seconds for a unit of each cost.
struct Speed {
  double decoded = 0, products = 0;
  double seconds(const Cost& cost) const { return decoded * cost.decoded + products * cost.products; }
};

// Runs the embedding and the first layer of the first tokens, at most eight, a few times. The lane must run.
Speed measure_speed(RunningLane& lane, const Program& program, const ModelConfig& config,
                    std::span<const std::int32_t> tokens);

// Seconds that comparing two tensors takes for each value.
double measure_comparing();

}  // namespace moe_diag
