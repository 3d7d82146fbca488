// SPDX-License-Identifier: MIT
#include "tests/score/unknown.hpp"

#include <fmt/format.h>

#include <cstdint>
#include <random>
#include <vector>

#include "core/compare/explain_step.hpp"
#include "tests/support/step_bench.hpp"
#include "tests/support/unknown_steps.hpp"

namespace moe_diag::score {

void UnknownFaults::score(int seeds, int every, bool list) {
  int drawn = 0;
  for (int seed = 0; seed < seeds; ++seed) {
    SyntheticSpec spec;
    spec.seed = static_cast<std::uint64_t>(seed);
    test::StepBench bench(spec, "f32", {26, 53, 458, 97, 493, 238, 462});
    std::mt19937 random(static_cast<unsigned>(seed));
    for (const Step& step : bench.program())
      for (const Stage stage : step.out) {
        if (payload_of(stage) == Payload::indices) continue;
        StepCase c = bench.clean(step, stage);
        for (const test::Made& made : test::UnknownSteps(bench, c).make()) {
          if (drawn++ % every != 0) continue;
          const std::vector<float> values = test::stored(made.values, c, bench.config(), random);
          c.a.data = values.data();
          Score& score = rows_[made.name];
          ++score.planted;
          const StepExplanation e = bench.explain(c);
          if (e.cause == StepCause::none) continue;
          ++score.counted;
          ++(e.cause == StepCause::plain_operator ? score.plain : score.wrong);
          if (list && e.cause != StepCause::plain_operator)
            fmt::print("seed {}, layer {}, {}, {}: WRONG: {} {}\n", seed, step.layer, name_of(stage), made.name,
                       name_of(e.cause), e.text);
        }
      }
  }
}

void UnknownFaults::print() const {
  fmt::print("\nFaults that no cause is known for, lane `step`, f32:\n\n");
  fmt::print("| fault | planted | counted | `operator` | cause named, which is wrong |\n");
  fmt::print("|---|---:|---:|---:|---:|\n");
  Score all;
  for (const auto& [name, s] : rows_) {
    fmt::print("| {} | {} | {} | {} | {} |\n", name, s.planted, s.counted, s.plain, s.wrong);
    all.planted += s.planted;
    all.counted += s.counted;
    all.plain += s.plain;
    all.wrong += s.wrong;
  }
  fmt::print("| all | {} | {} | {} | {} |\n", all.planted, all.counted, all.plain, all.wrong);
}

bool UnknownFaults::good() const {
  int counted = 0;
  for (const auto& [name, s] : rows_) {
    counted += s.counted;
    if (s.wrong > 0) return false;
  }
  return counted > 0;
}

}  // namespace moe_diag::score
