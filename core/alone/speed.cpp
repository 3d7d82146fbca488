// SPDX-License-Identifier: MIT
#include "core/alone/speed.hpp"

#include <algorithm>
#include <vector>

namespace moe_diag {
namespace {

constexpr std::size_t most_rows = 8;

}  // namespace

Speed measure_speed(RunningLane& lane, const Program& program, const ModelConfig& config,
                    std::span<const std::int32_t> tokens) {
  const auto end = std::find_if(program.begin(), program.end(), [](const Step& s) { return s.layer > 0; });
  std::vector<Step> steps(program.begin(), end);
  const auto head = std::find_if(steps.begin() + 1, steps.end(), [](const Step& s) { return s.layer < 0; });
  steps.erase(head, steps.end());  // a model of one layer goes on to the head
  const auto time_of = [&](std::size_t rows) {
    return fastest_of([&] {
      const int n = static_cast<int>(rows);
      lane.begin({tokens.first(rows), 0, n, n - 1});
      lane.run(steps);
      lane.read({config.stages.of(Role::layer_output), 0}, {0, n});  // waits
    });
  };
  const auto cost = [&](std::size_t rows) {
    Cost sum;
    for (const Step& step : steps) {
      const int n = static_cast<int>(rows);
      sum += cost_of(step, config, n, n, 1);
    }
    return sum;
  };
  // Two measurements for two unknowns; where one of them drowns in the noise, all is put down to both alike.
  const std::size_t rows = std::min(most_rows, tokens.size());
  const Cost one = cost(1), many = cost(rows);
  const double one_seconds = time_of(1), many_seconds = rows > 1 ? time_of(rows) : one_seconds;
  const double determinant = one.decoded * many.products - many.decoded * one.products;
  const double alike = many_seconds / (many.decoded + many.products);
  if (determinant <= 0) return {alike, alike};
  const Speed speed{(one_seconds * many.products - many_seconds * one.products) / determinant,
                    (one.decoded * many_seconds - many.decoded * one_seconds) / determinant};
  return speed.decoded > 0 && speed.products > 0 ? speed : Speed{alike, alike};
}

}  // namespace moe_diag
