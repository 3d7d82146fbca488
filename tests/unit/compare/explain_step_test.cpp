// SPDX-License-Identifier: MIT
// Every cause made by the plain operators on real steps of the tiny model, and what the explanation calls it.
#include "core/compare/explain_step.hpp"
#include "core/ops/hypotheses.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include "core/api/error.hpp"
#include "core/ops/operator.hpp"
#include "core/ops/predicted.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/engine_steps.hpp"
#include "tests/support/stages.hpp"
#include "tests/support/step_bench.hpp"
#include "tests/support/wrong_steps.hpp"

namespace moe_diag::test {
namespace {

struct Score {
  int right = 0, unmoved = 0;
  std::vector<std::string> wrong, merely;
};

void judge(Score& score, const StepBench& bench, const StepCase& c, const Made& made, const std::string& where) {
  const StepExplanation e = bench.explain(c);
  const std::string line = fmt::format("{}: {}: {} ({}), {:.3g} -> {:.3g}; {}", where, made.name, name_of(e.cause),
                                       e.text, e.error, e.left, e.footprint.text);
  if (e.cause == made.cause)
    ++score.right;
  else if (e.cause == StepCause::none || e.error < failing_error)
    ++score.unmoved;
  else if (e.cause == StepCause::plain_operator)
    score.merely.push_back(line);
  else
    score.wrong.push_back(line);
}

enum class Mistakes { all, of_engines };

Score score_of(const SyntheticSpec& spec, const std::string& numerics, const std::set<int>& layers,
               Mistakes mistakes = Mistakes::all) {
  StepBench bench(spec, "f32", {3, 141, 59, 26, 500, 0, 7});
  std::mt19937 random(static_cast<unsigned>(spec.seed) + 1);
  Score score;
  for (const Step& step : bench.program()) {
    if (layers.count(step.layer) == 0) continue;
    for (Stage stage : step.out) {
      if (payload_of(stage) == Payload::indices) continue;
      StepCase c = bench.clean(step, stage);
      c.numerics = numerics;
      std::vector<Made> all = EngineSteps(bench, c).named();
      if (mistakes == Mistakes::all)
        for (Made& made : Faults(bench, c, static_cast<unsigned>(spec.seed) + 7).make()) all.push_back(std::move(made));
      for (const Made& made : all) {
        std::vector<float> values = stored(made.values, c, bench.config(), random);
        if (made.bit >= 0) flip(values[made.element], made.bit);
        c.a.data = values.data();
        judge(score, bench, c, made,
              fmt::format("{} {} layer {} {}", to_string(spec), numerics, step.layer, name_of(stage)));
      }
    }
  }
  return score;
}

void check(const Score& score, int least = 500) {
  for (const std::string& line : score.wrong) UNSCOPED_INFO("wrong: " << line);
  for (const std::string& line : score.merely) UNSCOPED_INFO("merely operator: " << line);
  INFO(score.right << " right, " << score.unmoved << " moved too little to count");
  CHECK(score.wrong.empty());
  CHECK(score.right > least);
  CHECK(score.unmoved * 10 < score.right);
  CHECK(score.merely.size() * 20 < static_cast<std::size_t>(score.right));
}

}  // namespace

TEST_CASE("each cause is named, and none falsely: f32") { check(score_of({"tiny", 0, "q4_k_m", 7}, "f32", {-1, 2})); }

TEST_CASE("each cause is named, and none falsely: bf16") { check(score_of({"tiny", 0, "q4_k_m", 8}, "bf16", {-1, 1})); }

TEST_CASE("each cause is named, and none falsely: Qwen2-MoE") {
  check(score_of({"tiny-qwen2moe", 0, "q4_k_m", 7}, "f32", {-1, 2}));
}

TEST_CASE("each cause is named, and none falsely: other types of weights") {
  check(score_of({"tiny", 3, "q6_k", 9}, "f32", {-1, 1}));
  check(score_of({"tiny", 3, "f32", 10}, "f32", {-1, 2}));
  for (const std::string quant : {"q5_k", "q3_k"})
    check(score_of({"tiny", 3, quant, 11}, "f32", {1}, Mistakes::of_engines), 100);
}

TEST_CASE("sums as coarse as declared are no alarm, and coarser ones are found") {
  StepBench bench({"tiny", 0, "q4_k_m", 7}, "f32", {3, 141, 59, 26});
  int steps = 0;
  for (const Step& step : bench.program()) {
    if (step.layer != 1 || !is_product(operator_of(step))) continue;
    ++steps;
    StepCase c = bench.clean(step, step.out[0]);
    for (const Made& made : EngineSteps(bench, c).named()) {
      if (made.cause != StepCause::accumulation) continue;
      const bool in_bf16 = made.name == "sums in bf16";
      const std::vector<float> values(made.values.begin(), made.values.end());
      c.a.data = values.data();
      const auto cause_beside = [&](const std::string& declared) {
        c.numerics.accumulator = declared;
        return bench.explain(c).cause;
      };
      INFO(name_of(step.out[0]) << ", " << made.name);
      CHECK(cause_beside("") == StepCause::accumulation);
      CHECK(cause_beside("f32") == StepCause::accumulation);
      CHECK(cause_beside(in_bf16 ? "bf16" : "f16") == StepCause::none);
      if (in_bf16) CHECK(cause_beside("fp8_tensor_core") == StepCause::accumulation);
    }
  }
  CHECK(steps > 4);
}

TEST_CASE("nothing is explained where nothing is wrong: every numerics") {
  for (const std::string numerics : {"f32", "bf16", "q8_k"})
    for (const std::string quant : {"q4_k_m", "q8_0", "q6_k", "bf16"})
      for (std::uint64_t seed = 0; seed < 4; ++seed) {
        StepBench bench({seed < 3 ? "tiny" : "tiny-qwen2moe", 0, quant, seed}, numerics,
                        {5, 17, 400, 33, 2, 2, 90, 411, 8});
        for (const Step& step : bench.program())
          for (Stage stage : step.out) {
            const StepExplanation e = bench.explain(bench.clean(step, stage));
            INFO(numerics << ", " << quant << ", seed " << seed << ", layer " << step.layer << ", " << name_of(stage));
            CHECK(e.cause == StepCause::none);
            CHECK(e.text.empty());
            CHECK(e.footprint.wrong == 0);
            CHECK(e.footprint.text.empty());
          }
      }
}

namespace {

// A clean case of the bench whose values can be changed.
struct Changed {
  StepBench& bench;
  StepCase c;
  std::vector<float> values;

  Changed(StepBench& of, Stage stage, int layer)
      : bench(of), c(of.clean(*find_step(of.program(), {stage, layer}), stage)) {
    values.assign(c.a.as<float>(), c.a.as<float>() + c.a.shape.count());
    c.a.data = values.data();
  }
  float& at(std::int64_t row, std::int64_t column) {
    return values[static_cast<std::size_t>(row * c.a.shape.row() + column)];
  }
  StepExplanation explain() const { return bench.explain(c); }
};

const std::vector<std::int32_t> few_tokens{5, 17, 400, 33, 2, 2, 90};

}  // namespace

TEST_CASE("the footprint says which rows, columns and experts are wrong") {
  StepBench bench({"tiny", 0, "q4_k_m", 3}, "f32", few_tokens);
  SECTION("columns of all rows") {
    Changed changed(bench, stages::attn_out, 1);
    for (int r = 0; r < 7; ++r)
      for (int k = 128; k < 256; ++k) changed.at(r, k) = 0;
    const StepExplanation e = changed.explain();
    CHECK(e.cause == StepCause::zero);
    CHECK(e.footprint.text == "columns 128 to 255 of all 7 positions compared, 0 to 6");
    CHECK(e.footprint.wrong > 7 * 120);
    CHECK(e.footprint.compared == 7 * 256);
  }
  SECTION("every fourth column of some rows") {
    Changed changed(bench, stages::ffn_norm, 0);
    for (int r : {2, 3, 6})
      for (int k = 1; k < 256; k += 4) changed.at(r, k) *= 1.5F;
    const StepExplanation e = changed.explain();
    CHECK(e.cause == StepCause::scale);
    CHECK(e.factor == Approx(1.5).epsilon(1e-6));
    CHECK(e.text == "multiplied by 1.5");
    CHECK(e.footprint.text == "every 4th column from 1 to 253 of positions 2 to 3, 6");
    CHECK(e.footprint.positions == std::vector<int>{2, 3, 6});
  }
  SECTION("one element") {
    Changed changed(bench, stages::moe_ffn_out, 2);
    flip(changed.at(4, 77), 29);
    const StepExplanation e = changed.explain();
    CHECK(e.cause == StepCause::bitflip);
    CHECK(e.text == "bit 29 of element 77 is flipped");
    CHECK(e.footprint.text == "column 77 of position 4");
    CHECK(e.footprint.wrong == 1);
  }
  SECTION("an expert") {
    Changed changed(bench, stages::moe_expert_up, 2);
    const auto* ids = changed.c.routing_a.as<std::int32_t>();
    const std::int32_t expert = ids[0];
    const std::int64_t width = bench.config().expert_width;
    std::int64_t rows = 0;
    for (std::int64_t i = 0; i < 7 * 3; ++i)
      if (ids[i] == expert)
        for (std::int64_t k = (++rows, 0); k < width; ++k)
          changed.values[static_cast<std::size_t>(i * width + k)] *= -2;
    const StepExplanation e = changed.explain();
    CHECK(e.cause == StepCause::scale);
    REQUIRE(e.footprint.experts.size() == 1);
    CHECK(e.footprint.experts[0].expert == expert);
    CHECK(e.footprint.experts[0].rows == rows);
    CHECK_THAT(e.footprint.text,
               Catch::Matchers::Contains(fmt::format("expert {} only, all its rows; all columns of", expert)));
  }
}

TEST_CASE("texts name tensors, types, experts and numbers") {
  StepBench bench({"tiny", 0, "q4_k_m", 3}, "f32", few_tokens);
  const auto explained = [&](Stage stage, int layer, const Values& values) {
    Changed changed(bench, stage, layer);
    REQUIRE(values.size() == changed.values.size());
    std::copy(values.begin(), values.end(), changed.values.begin());
    return changed.explain();
  };
  const StepCase down = bench.clean(*find_step(bench.program(), {stages::moe_expert_out, 1}), stages::moe_expert_out);
  const Weight& weight = *down.step->weights[0];
  std::vector<std::int32_t> ids(down.routing_a.as<std::int32_t>(), down.routing_a.as<std::int32_t>() + 21);
  const Values x = host::values_of(down.in[0]);

  const std::set<int> ran(ids.begin(), ids.end());
  const std::string who = numbers_text({ran.begin(), ran.end()});
  REQUIRE(ran.count(0) == 1);
  for (std::int32_t& id : ids) id = (id + 11) % 12;
  CHECK(explained(stages::moe_expert_out, 1, host::expert_linear(Matrix(weight), ids, 3, x)).text ==
        fmt::format("experts {} computed with the weights of expert (id - 1) mod 12", who));
  REQUIRE(ran.count(11) == 0);
  for (std::int32_t& id : ids) id = (id + 2) % 12;
  CHECK(explained(stages::moe_expert_out, 1, host::expert_linear(Matrix(weight), ids, 3, x)).text ==
        fmt::format("experts {} computed with the weights of expert id + 1", who));
  for (std::int32_t& id : ids) id = (id + 11) % 12;
  CHECK(explained(stages::moe_expert_out, 1,
                  host::expert_linear(Matrix(bench.model().weight("ffn_down_exps", 3)), ids, 3, x))
            .text == "computed with blk.3.ffn_down_exps.weight instead of blk.1.ffn_down_exps.weight");
  Matrix retyped(weight);
  retyped.type = weight.type == BlockType::q4_k ? BlockType::q6_k : BlockType::q4_k;
  CHECK(explained(stages::moe_expert_out, 1, host::expert_linear(retyped, ids, 3, x)).text ==
        fmt::format("blk.1.ffn_down_exps.weight ({}) read as {}", name_of(weight.type), name_of(retyped.type)));
}

TEST_CASE("experts of which every slot holds zeros are told: those of a rank that was never added") {
  StepBench bench({"tiny", 0, "q4_k_m", 3}, "f32", few_tokens);
  Changed changed(bench, stages::moe_expert_out, 1);
  const std::int64_t width = bench.config().hidden;
  const auto* ids = changed.c.routing_a.as<std::int32_t>();
  std::set<int> zero;
  const auto clear = [&](std::int64_t slot) {
    for (std::int64_t i = 0; i < width; ++i) changed.values[static_cast<std::size_t>(slot * width + i)] = 0;
  };
  for (std::int64_t slot = 0; slot < changed.c.routing_a.shape.count(); ++slot)
    if (ids[slot] >= 6) {
      zero.insert(ids[slot]);
      clear(slot);
    }
  REQUIRE(zero.size() > 1);
  StepExplanation e = changed.explain();
  CHECK(e.cause == StepCause::zero);
  CHECK(e.text == fmt::format("experts {} give zeros", numbers_text({zero.begin(), zero.end()})));
  const auto* end = ids + changed.c.routing_a.shape.count();
  const auto* twice = std::find_if(ids, end, [&](int id) { return id < 6 && std::count(ids, end, id) > 1; });
  REQUIRE(twice != end);
  clear(twice - ids);  // one slot of another expert, not all
  e = changed.explain();
  CHECK(e.cause == StepCause::zero);
  CHECK(e.text == "zeros instead of values");
}

TEST_CASE("experts chosen without the best one are named so, others are not") {
  StepBench bench({"tiny", 0, "q4_k_m", 3}, "f32", few_tokens);
  StepCase c = bench.clean(*find_step(bench.program(), {stages::moe_router_indices, 1}), stages::moe_router_indices);
  std::vector<std::int32_t> ids(c.a.as<std::int32_t>(), c.a.as<std::int32_t>() + c.a.shape.count());
  c.a.data = ids.data();
  const host::Chosen best = host::topk(host::values_of(c.in[0], 2, 1), 5);
  std::copy_n(best.experts.begin() + 1, 3, ids.begin() + 6);
  StepExplanation e = bench.explain(c);
  CHECK(e.cause == StepCause::dropped_expert);
  CHECK(e.footprint.text == "1 of 21 experts chosen, at position 2");
  CHECK(e.footprint.positions == std::vector<int>{2});
  ids[6] = best.experts[4];
  CHECK(bench.explain(c).cause == StepCause::plain_operator);
}

TEST_CASE("values that are not finite are explained when their cause is") {
  StepBench bench({"tiny", 0, "q4_k_m", 3}, "f32", few_tokens);
  Changed changed(bench, stages::moe_ffn_out, 1);
  changed.at(1, 5) = NAN;
  StepExplanation e = changed.explain();
  CHECK(e.cause == StepCause::plain_operator);
  CHECK(std::isinf(e.error));
  CHECK(e.footprint.text == "column 5 of position 1");
}

TEST_CASE("values that are not finite just where F16 ends are told to be so") {
  StepBench bench({"tiny", 0, "q4_k_m", 3}, "f32", few_tokens);
  const StepCase clean = bench.clean(*find_step(bench.program(), {stages::attn_out, 1}), stages::attn_out);
  std::vector<double> truth = host::values_of(clean.b), inputs = host::values_of(clean.in[0]);
  std::vector<float> lane;
  for (double& v : truth) v *= 1e5;
  for (double& v : inputs) v = std::clamp(v * 1e5, -6e4, 6e4);
  for (const double v : truth) lane.push_back(std::fabs(v) > 65504 ? INFINITY : static_cast<float>(v));
  StepCase c = clean;
  c.a = {lane.data(), DType::f32, clean.a.shape};
  c.b = {truth.data(), DType::f64, clean.b.shape};
  c.in[0] = {inputs.data(), DType::f64, clean.in[0].shape};
  StepExplanation e = bench.explain(c);
  CHECK(e.cause == StepCause::plain_operator);
  CHECK_THAT(e.text, Catch::Matchers::Contains("F16 ends at 65504, and the values that are not finite reach "));
  // One value more that is not finite has another reason.
  *std::find_if(lane.begin(), lane.end(), [](float v) { return std::fabs(v) < 65504; }) = INFINITY;
  CHECK(bench.explain(c).text.empty());
  // An input beyond it makes all of its row so.
  const std::int64_t width = c.in[0].shape.row(), out = c.a.shape.row();
  for (std::size_t i = 0; i < lane.size(); ++i) lane[i] = static_cast<float>(truth[i]);
  inputs[static_cast<std::size_t>(2 * width)] = 81000;
  std::fill_n(lane.begin() + 2 * out, out, NAN);
  CHECK_THAT(bench.explain(c).text,
             Catch::Matchers::Contains("the inputs of the rows that are not finite reach 8.1e+04"));
  inputs[0] = -81000;
  CHECK(bench.explain(c).text.empty());
}

TEST_CASE("a mistake that has no name is an operator: at every step") {
  StepBench bench({"tiny", 0, "q4_k_m", 5}, "f32", few_tokens);
  std::mt19937 random(5);
  std::set<std::string> kinds;
  for (const Step& step : bench.program()) {
    if (step.layer > 0) continue;
    for (Stage stage : step.out) {
      if (payload_of(stage) == Payload::indices) continue;
      StepCase c = bench.clean(step, stage);
      for (const Made& made : EngineSteps(bench, c).unknown()) {
        const std::vector<float> values = stored(made.values, c, bench.config(), random);
        c.a.data = values.data();
        const StepExplanation e = bench.explain(c);
        INFO(name_of(stage) << ", " << made.name << ": " << name_of(e.cause) << " " << e.text);
        CHECK((e.cause == StepCause::plain_operator || e.cause == StepCause::none));
        if (e.cause == StepCause::plain_operator) kinds.insert(made.name);
      }
    }
  }
  CHECK(kinds.size() >= 33);
}

namespace {

// A mistake of an engine at layer 1, in the rows from `first` on; the oracle's values before.
StepExplanation explained(StepBench& bench, Stage stage, const std::string& mistake, std::int64_t first = 0) {
  Changed changed(bench, stage, 1);
  std::vector<Made> all = EngineSteps(bench, changed.c).named();
  const auto made = std::find_if(all.begin(), all.end(), [&](const Made& m) { return m.name == mistake; });
  REQUIRE(made != all.end());
  const auto from = first * changed.c.a.shape.row();
  std::copy(made->values.begin() + from, made->values.end(), changed.values.begin() + from);
  return changed.explain();
}

}  // namespace

TEST_CASE("texts have the numbers that were solved") {
  StepBench bench({"tiny", 0, "q4_k_m", 3}, "f32", few_tokens);
  const auto text = [&](Stage stage, const std::string& mistake) { return explained(bench, stage, mistake).text; };
  CHECK(text(stages::ffn_norm, "eps 0.001") == "computed with an eps of 0.001 instead of 1e-06");
  CHECK(text(stages::q_norm, "eps 1e-05") == "computed with an eps of 1e-05 instead of 1e-06");
  CHECK(text(stages::q_norm, "norm over all heads") == "one norm over all 8 heads instead of one for each");
  CHECK(text(stages::q_post_rope, "positions divided by 2.5") == "the positions are divided by 2.5");
  CHECK(text(stages::q_post_rope, "positions divided by 0.5") == "the positions are multiplied by 2");
  CHECK(text(stages::q_post_rope, "YaRN") == "YaRN with factor 4 and an original context of 64");
  CHECK(text(stages::q_post_rope, "half of the columns") ==
        "only the first 32 of 64 columns of a head are rotated, by the angles of a head of 32");
  CHECK(text(stages::q_post_rope, "three positions on") == "rotated by the angle of the position 3 after it");
  CHECK(text(stages::attn_softmax, "a window of 3 keys") == "only the last 3 keys count");
  CHECK(text(stages::attn_softmax, "a sink beside the keys") == "1 more in the denominator of the softmax");
  CHECK(text(stages::attn_softmax, "twice as cold") == "the scores are multiplied by 2 before the softmax");
  CHECK(text(stages::attn_scores, "the cache in Q8_0") == "the keys are rounded to Q8_0, as in a cache of that type");
  CHECK(text(stages::attn_scores, "1/sqrt(h) twice") == "multiplied by 0.125: 1/sqrt(64) was applied twice");
  CHECK(text(stages::moe_expert_swiglu, "clamped at 0.1") == "gate clamped to at most 0.1, up to -0.1 .. 0.1");
  CHECK(text(stages::moe_expert_up, "half of K") ==
        "only columns 0 to 127 of the 256 of blk.1.ffn_up_exps.weight are summed");
}

TEST_CASE("numbers are not solved from one row, which shows any") {
  StepBench bench({"tiny", 0, "q4_k_m", 3}, "f32", few_tokens);
  const auto cause = [&](Stage stage, const std::string& mistake, std::int64_t first) {
    return explained(bench, stage, mistake, first).cause;
  };
  CHECK(cause(stages::ffn_norm, "eps 0.001", 5) == StepCause::eps);
  CHECK(cause(stages::ffn_norm, "eps 0.001", 6) == StepCause::plain_operator);
  CHECK(cause(stages::q_post_rope, "positions divided by 2.5", 5) == StepCause::rotation);
  CHECK(cause(stages::q_post_rope, "positions divided by 2.5", 6) == StepCause::plain_operator);
  CHECK(cause(stages::q_post_rope, "three positions on", 5) == StepCause::shifted_position);
  CHECK(cause(stages::q_post_rope, "three positions on", 6) == StepCause::plain_operator);
  CHECK(cause(stages::attn_softmax, "a window of 3 keys", 5) == StepCause::window);
  CHECK(cause(stages::attn_softmax, "a window of 3 keys", 6) == StepCause::plain_operator);
  CHECK(cause(stages::attn_softmax, "a sink beside the keys", 4) == StepCause::function);
  CHECK(cause(stages::attn_softmax, "a sink beside the keys", 5) == StepCause::plain_operator);
}

namespace {

// moe_expert_out of layer 1 as the oracle has it, to be changed, and as a lane stores it that rounds what it writes.
struct Stored {
  Changed lane;
  Values exact;
  host::Rounding rounding;

  Stored(StepBench& bench, host::Rounding r)
      : lane(bench, stages::moe_expert_out, 1), exact(host::values_of(lane.c.b)), rounding(r) {
    lane.c.b.data = exact.data();
    store();
  }
  void store() {
    const Values rounded = host::rounded(exact, rounding);
    std::copy(rounded.begin(), rounded.end(), lane.values.begin());
  }
  // The roundings of element i from below and from above, where its exact value is moved to lie between them: that far
  // along.
  std::pair<float, float> put_between(std::size_t i, double along) {
    const auto block = static_cast<std::size_t>(host::block_of(rounding));
    const auto rounded_at = [&](double value) {
      Values some(exact.begin() + static_cast<std::ptrdiff_t>(i / block * block),
                  exact.begin() + static_cast<std::ptrdiff_t>(i / block * block + block));
      some[i % block] = value;
      return host::rounded(some, rounding)[i % block];
    };
    const double below = rounded_at(exact[i]);
    double inside = exact[i], beyond = inside, step = std::fabs(inside) * 1e-4;
    while (rounded_at(beyond) == below) beyond += step;
    const double above = rounded_at(beyond);
    for (int k = 0; k < 60; ++k) (rounded_at((inside + beyond) / 2) == below ? inside : beyond) = (inside + beyond) / 2;
    exact[i] = inside + (along - 0.5) * (above - below);
    store();
    return {static_cast<float>(below), static_cast<float>(above)};
  }
};

}  // namespace

TEST_CASE("values next to a border between two roundings may fall to either side, others may not") {
  StepBench bench({"tiny", 0, "q4_k_m", 3}, "f32", few_tokens);
  using host::Rounding;
  for (const Rounding rounding : {Rounding::bf16, Rounding::f16, Rounding::q8_0, Rounding::q8_1, Rounding::q8_k}) {
    const std::string text = fmt::format("the values written are rounded to {}", names_of(rounding));
    INFO(text);
    Stored stored(bench, rounding);
    CHECK(stored.lane.explain().text == text);
    const auto middle = [&](std::size_t i) {  // large beside the errors of its unit, and not the largest of its block
      const double size = std::fabs(stored.exact[i]);
      return size > 0.02 && size < 0.6;
    };
    std::vector<std::size_t> some;
    for (std::size_t i = 5; i < stored.exact.size() && some.size() < 6; i += 97)
      if (middle(i)) some.push_back(i);
    REQUIRE(some.size() == 6);
    for (const std::size_t i : some) {
      const auto [below, above] = stored.put_between(i, 0.5 - 1e-9);
      stored.lane.values[i] = stored.lane.values[i] == below ? above : below;
      CHECK(stored.lane.explain().text == text);
      const auto [low, high] = stored.put_between(i, 0.4);
      stored.lane.values[i] = stored.lane.values[i] == low ? high : low;
      CHECK(stored.lane.explain().cause == StepCause::plain_operator);
      stored.store();
    }
  }
}

TEST_CASE("activations next to a border between two roundings may be read as either") {
  StepBench bench({"tiny", 0, "q4_k_m", 3}, "f32", few_tokens);
  for (const host::Rounding rounding : {host::Rounding::q8_0, host::Rounding::q8_1, host::Rounding::q8_k}) {
    INFO(host::name_of(rounding));
    Changed lane(bench, stages::attn_out, 1);
    const host::Matrix matrix(*lane.c.step->weights[0]);
    Values x = host::values_of(lane.c.in[0]);
    const auto block = static_cast<std::size_t>(host::block_of(rounding));
    double largest = 0;
    for (std::size_t i = 0; i < block; ++i) largest = std::max(largest, std::fabs(x[i]));
    const std::size_t tie = std::fabs(x[3]) == largest ? 4 : 3;
    x[tie] = static_cast<float>(40.5 * static_cast<double>(static_cast<float>(largest) / 127.0F));
    std::vector<float> in(x.begin(), x.end());
    lane.c.in[0].data = in.data();
    const Values exact = host::linear(matrix, x);
    lane.c.b = {exact.data(), DType::f64, lane.c.b.shape};
    const auto explained = [&](double steps) {
      Values read = host::rounded(x, rounding);
      double step = largest / 127;
      if (rounding == host::Rounding::q8_0) step = host::rounded(Values{step}, host::Rounding::f16)[0];
      read[tie] = std::fabs(read[tie] - 40 * step) < step / 2 ? read[tie] + steps * step : read[tie] - steps * step;
      const Values y = host::linear(matrix, read);
      std::copy(y.begin(), y.end(), lane.values.begin());
      return lane.explain();
    };
    const std::string text = fmt::format("activations rounded to {}", names_of(rounding));
    CHECK(explained(0).text == text);
    CHECK(explained(1).text == text);
    CHECK(explained(3).cause == StepCause::plain_operator);
  }
}

TEST_CASE("tensors that do not fit the step are refused, and inputs that are not known explain less") {
  StepBench bench({"tiny", 0, "q4_k_m", 3}, "f32", few_tokens);
  const Changed whole(bench, stages::q_post_rope, 1);
  const auto refused = [&](auto change) {
    StepCase c = whole.c;
    change(c);
    CHECK_THROWS_AS(bench.explain(c), Error);
  };
  refused([](StepCase& c) { c.b = {}; });
  refused([](StepCase& c) { c.a.shape.dims[0] = 6; });
  refused([](StepCase& c) { c.in[0].shape.dims[0] = 6; });
  refused([](StepCase& c) { c.stage = stages::attn_out; });
  refused([](StepCase& c) { c.numerics = "f16"; });
  Changed experts(bench, stages::moe_expert_out, 1);
  experts.c.routing_a = {};
  CHECK_THROWS_WITH(experts.explain(), "explaining moe_expert_out of layer 1: the experts chosen are not known");

  Changed turned(bench, stages::q_post_rope, 1);
  for (std::int64_t r = 0; r < 7; ++r) {
    const Values row = host::rope(host::values_of(turned.c.in[0], r, 1), bench.config().head_dim, r, {1e4});
    std::copy(row.begin(), row.end(), turned.values.begin() + r * static_cast<std::int64_t>(row.size()));
  }
  CHECK(turned.explain().text == "rotated with theta 10000 instead of 1e+06");
  turned.c.in[0] = {};
  CHECK(turned.explain().cause == StepCause::plain_operator);
}

}  // namespace moe_diag::test
