// SPDX-License-Identifier: MIT
// The errors that core/ops/predicted.hpp states, beside those that lanes fed the oracle's inputs make.
#include "core/ops/predicted.hpp"

#include <algorithm>
#include <cmath>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "core/compare/measure.hpp"
#include "core/compare/samples.hpp"
#include "core/model/program.hpp"
#include "core/ops/operator.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/lockstep.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag::test {
namespace {

constexpr double bound = 3;  // ten is what docs/numerics.md claims

// Of one stage, over all layers and positions.
struct Squares {
  double measured = 0, expected = 0, count = 0, worst = 0;
};

void add_samples(Squares& squares, Recorder& seen, const std::string& numerics, const Step& step, Stage stage,
                 const ModelConfig& config) {
  const Site site{stage, step.layer}, routing{stages::moe_router_indices, step.layer};
  Pair pair{site, seen.at(1, site).tensor(), seen.at(0, site).tensor(), {}, {}, 0, config.experts};
  if (is_per_expert(stage)) {
    pair.routing_a = seen.at(1, routing).tensor();
    pair.routing_b = seen.at(0, routing).tensor();
  }
  for (int row = 0; row < static_cast<int>(pair.a.shape[0]); ++row) {
    const auto expected = expected_error(numerics, step, config, row + 1);
    REQUIRE(expected);
    for (const SampleSegments& sample : samples_of_row(pair, row).samples) {
      Measure m;
      for (const Segment& s : sample.segments) m.add(pair.a, s.a, pair.b, s.b, s.n);
      REQUIRE(m.finite());
      squares.measured += m.rel_l2() * m.rel_l2();
      squares.expected += *expected * *expected;
      squares.count += 1;
      squares.worst = std::max(squares.worst, m.rel_l2() / *expected);
    }
  }
}

std::vector<Squares> squares_of(const SyntheticSpec& spec, const std::string& numerics, int count) {
  std::vector<std::int32_t> tokens;
  for (int i = 0; i < count; ++i) tokens.push_back(i * 97 % 509);
  Lockstep lockstep(
      Model::synthetic(spec),
      {lane_spec("truth", {{"numerics", "f64"}}), lane_spec("step", {{"numerics", numerics}, {"inputs", "truth"}})},
      count);
  Recorder seen = lockstep.record(tokens);
  std::vector<Squares> stages(qwen3moe.stages.size());
  for (const Step& step : build_program(lockstep.model()))
    for (Stage stage : step.out)
      if (payload_of(stage) == Payload::values)
        add_samples(stages[stage.index()], seen, numerics, step, stage, lockstep.model().config());
  return stages;
}

void check_stated(const SyntheticSpec& spec, const std::string& numerics, int count) {
  const std::vector<Squares> stages = squares_of(spec, numerics, count);
  for (const Stage stage : qwen3moe.stages) {
    const Squares& s = stages[stage.index()];
    if (payload_of(stage) == Payload::indices) continue;
    REQUIRE(s.count > 0);
    const double measured = std::sqrt(s.measured / s.count), expected = std::sqrt(s.expected / s.count);
    INFO(to_string(spec) << ", " << numerics << ", " << name_of(stage) << ": measured " << measured << ", expected "
                         << expected << ", worst row " << s.worst);
    CHECK(measured < bound * expected);
    if (measured == 0 && stage == stages::embedding) continue;  // exact in its type: one rounding is stated
    CHECK(expected < bound * measured);
  }
}

}  // namespace

TEST_CASE("stated errors lie near the measured ones: tiny, every quantisation") {
  for (const std::string quant : {"q4_k_m", "q8_0", "f32", "f16", "bf16"})
    for (const std::string numerics : {"f32", "bf16", "q8_k"}) {
      SyntheticSpec spec;
      spec.seed = 7;
      spec.quant = quant;
      check_stated(spec, numerics, 33);
    }
}

TEST_CASE("stated errors lie near the measured ones: types that are decoded only") {
  for (const std::string quant :
       {"q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q5_k", "q5_k_m", "iq4_nl", "iq4_xs", "mxfp4"}) {
    SyntheticSpec spec;
    spec.layers = 1;
    spec.seed = 7;
    spec.quant = quant;
    for (const std::string numerics : {"f32", "bf16"}) check_stated(spec, numerics, 17);
    CHECK_THROWS_WITH(squares_of(spec, "q8_k", 3), Catch::Matchers::Contains("q8_k does not multiply ") &&
                                                       Catch::Matchers::Contains("use f32, bf16 or f64"));
  }
}

TEST_CASE("every numerics known has a stated error for every step, none other has") {
  const Model model = Model::synthetic({});
  const auto stated = [&](const std::string& numerics, const Step& step) {
    return expected_error(numerics, step, model.config(), 5);
  };
  for (const Step& step : build_program(model)) {
    for (const std::string numerics : {"f64", "f32", "bf16", "q8_k", "q8_1"}) {
      REQUIRE(stated(numerics, step));
      CHECK(*stated(numerics, step) > 0);
      CHECK(*stated(numerics, step) < 0.02);
    }
    CHECK(*stated("f64", step) < 1e-14);
    const bool multiplies = step.op == Op::linear || step.op == Op::expert_linear;
    CHECK((*stated("bf16", step) > 1e-3) == multiplies);
    CHECK((*stated("q8_k", step) > 1e-3) == (multiplies && step.weights[0]->type != BlockType::f32));
    CHECK((*stated("q8_1", step) > 1e-3) == (multiplies && step.weights[0]->type != BlockType::f32));
    for (const std::string numerics : {"", "f16", "F32", "q8"}) CHECK_FALSE(stated(numerics, step));
  }
}

namespace {

// The terms added as the row says. Those that are added at once are first aligned to the largest, as tensor cores do.
double sum_of(const std::vector<double>& terms, const Accumulator& sums) {
  const auto kept = [&](double x, int exponent) {
    const double scaled = std::ldexp(x, sums.bits - 1 - exponent);
    return std::ldexp(sums.truncates ? std::trunc(scaled) : std::nearbyint(scaled), exponent - (sums.bits - 1));
  };
  double all = 0, sum = 0;
  const auto together = static_cast<std::size_t>(sums.together);
  for (std::size_t i = 0; i < terms.size(); i += together) {
    const std::span<const double> some(terms.data() + i, together);
    double largest = std::fabs(sum), next = 0;
    for (const double term : some) largest = std::max(largest, std::fabs(term));
    for (const double term : some) next += together > 1 ? kept(term, std::ilogb(largest)) : term;
    next += sum;
    sum = next == 0 ? 0 : kept(next, std::ilogb(next));
    if (sums.promoted_after == 0 || (i + together) % static_cast<std::size_t>(sums.promoted_after) != 0) continue;
    all = static_cast<double>(static_cast<float>(all + sum));
    sum = 0;
  }
  return all + sum;
}

}  // namespace

TEST_CASE("stated errors lie near the measured ones: sums of fewer bits") {
  const Model model = Model::synthetic({});
  Program program = build_program(model);
  const auto step = std::find_if(program.begin(), program.end(),
                                 [](const Step& s) { return s.weights.size() == 1 && is_product(operator_of(s)); });
  REQUIRE(step != program.end());
  std::mt19937 random(5);
  std::normal_distribution<double> normal;
  for (const Accumulator& sums : all_accumulators()) {
    if (sums.kind == Accumulator::Kind::partial_sums) continue;
    for (const std::int64_t n : {256, 2048}) {
      double off = 0, squares = 0;
      for (int row = 0; row < 200; ++row) {
        std::vector<double> terms;
        double exact = 0;
        for (std::int64_t i = 0; i < n; ++i) exact += terms.emplace_back(normal(random) * normal(random));
        const double error = sum_of(terms, sums) - exact;
        off += error * error;
        squares += exact * exact;
      }
      Weight weight = *step->weights[0];
      weight.cols = n;
      Step one = *step;
      one.weights = {&weight};
      LaneNumerics lane = "f32";
      lane.accumulator = sums.name;
      const double measured = std::sqrt(off / squares), expected = *expected_error(lane, one, model.config(), 1);
      INFO(sums.name << ", " << n << " terms: measured " << measured << ", expected " << expected);
      CHECK(measured < bound * expected);
      CHECK(expected < bound * measured);
    }
  }
}

TEST_CASE("stated errors lie near the measured ones: a layer of full width") {
  for (const std::string numerics : {"f32", "bf16", "q8_k"}) {
    SyntheticSpec spec;
    spec.preset = "qwen3-30b-a3b";
    spec.layers = 1;
    spec.seed = 1;
    check_stated(spec, numerics, 8);
  }
}

}  // namespace moe_diag::test
