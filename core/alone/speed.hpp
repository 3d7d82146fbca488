// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <limits>
#include <span>

#include "core/lane/lanes.hpp"
#include "core/model/program.hpp"
#include "core/plan/workload.hpp"

namespace moe_diag {

// Seconds that the work takes. The first of a few times warms up: pages and threads are there afterwards.
template <class Work>
double fastest_of(const Work& work) {
  double best = std::numeric_limits<double>::infinity();
  for (int repeat = 0; repeat < 3; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    work();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

// How fast a lane is, in seconds for a unit of each cost.
struct Speed {
  double decoded = 0, products = 0;
  double seconds(const Cost& cost) const { return decoded * cost.decoded + products * cost.products; }
};

// Runs the embedding and the first layer of the first tokens, at most eight, a few times. The lane must run.
Speed measure_speed(RunningLane& lane, const Program& program, const ModelConfig& config,
                    std::span<const std::int32_t> tokens);

}  // namespace moe_diag
