// SPDX-License-Identifier: MIT
#include "tests/score/engines.hpp"

#include <fmt/format.h>

#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include "core/compare/explain_step.hpp"
#include "tests/support/engine_steps.hpp"
#include "tests/support/step_bench.hpp"

namespace moe_diag::score {

EngineFaults::Score& EngineFaults::Score::operator+=(const Score& other) {
  planted += other.planted;
  counted += other.counted;
  right += other.right;
  plain += other.plain;
  wrong += other.wrong;
  return *this;
}

EngineFaults::Score EngineFaults::sum_of(const Rows& rows) {
  Score all;
  for (const auto& [name, score] : rows) all += score;
  return all;
}

void EngineFaults::score(int seeds, int every, bool list) {
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
        test::EngineSteps steps(bench, c);
        std::vector<test::Made> all = steps.named();
        for (test::Made& made : steps.unknown()) all.push_back(std::move(made));
        for (const test::Made& made : all) {
          if (drawn++ % every != 0) continue;
          const std::vector<float> values = test::stored(made.values, c, bench.config(), random);
          c.a.data = values.data();
          const bool is_unknown = made.cause == StepCause::plain_operator;
          Score& score = (is_unknown ? unknown_ : named_)[made.name];
          ++score.planted;
          const StepExplanation e = bench.explain(c);
          if (e.cause == StepCause::none) continue;
          ++score.counted;
          ++(e.cause == made.cause ? score.right : e.cause == StepCause::plain_operator ? score.plain : score.wrong);
          if (list && e.cause != made.cause)
            fmt::print("seed {}, layer {}, {}, {}: {}{} {}\n", seed, step.layer, name_of(stage), made.name,
                       e.cause == StepCause::plain_operator ? "" : "WRONG: ", name_of(e.cause), e.text);
        }
      }
  }
}

void EngineFaults::print() const {
  const auto print_rows = [](const Rows& rows, auto row) {
    for (const auto& [name, score] : rows) row(name, score);
    row("all", sum_of(rows));
  };
  fmt::print("\nMistakes of engines, lane `step`, f32:\n\n");
  fmt::print("| mistake | planted | counted | cause right | `operator` | cause wrong |\n");
  fmt::print("|---|---:|---:|---:|---:|---:|\n");
  print_rows(named_, [](const std::string& name, const Score& s) {
    fmt::print("| {} | {} | {} | {} | {} | {} |\n", name, s.planted, s.counted, s.right, s.plain, s.wrong);
  });
  fmt::print("\nFaults that no cause is known for, lane `step`, f32:\n\n");
  fmt::print("| fault | planted | counted | `operator` | cause named, which is wrong |\n");
  fmt::print("|---|---:|---:|---:|---:|\n");
  print_rows(unknown_, [](const std::string& name, const Score& s) {
    fmt::print("| {} | {} | {} | {} | {} |\n", name, s.planted, s.counted, s.right, s.wrong);
  });
}

bool EngineFaults::good() const {
  constexpr double nearly_all = 0.9;
  const Score named = sum_of(named_), unknown = sum_of(unknown_);
  return named.wrong == 0 && unknown.wrong == 0 && unknown.counted > 0 &&
         named.right >= nearly_all * static_cast<double>(named.counted);
}

}  // namespace moe_diag::score
