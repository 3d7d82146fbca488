// SPDX-License-Identifier: MIT
// A lane that stands for an engine with coarser types: what it stores, reads and caches is rounded, and nothing else.
#include "core/lane/rounded_lane.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <string>
#include <vector>

#include "core/model/program.hpp"
#include "core/model/rounded_weights.hpp"
#include "core/model/synthetic.hpp"
#include "core/ops/attention.hpp"
#include "core/ops/expert_linear.hpp"
#include "core/ops/linear.hpp"
#include "core/ops/mix.hpp"
#include "core/ops/operator.hpp"
#include "core/ops/rotation.hpp"
#include "core/ops/scores.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/lockstep.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag::test {
namespace {

const std::vector<std::int32_t> tokens = {5, 9, 26, 7, 1};
const int count = static_cast<int>(tokens.size());
const Site scores_site{stages::attn_scores, 0}, mix_site{stages::attention, 0};

// The oracle, and a lane in f64 that is fed by it and stands for an engine.
class Beside {
 public:
  explicit Beside(Keys engine, const std::string& quant = "q4_k_m")
      : lockstep_(Model::synthetic({.layers = 1, .quant = quant}),
                  {lane_spec("truth", {{"numerics", "f64"}}), lane_spec("engine", fed(std::move(engine)))}, count),
        seen_(lockstep_.record(tokens)),
        program_(build_program(lockstep_.model())) {}

  const ModelConfig& config() const { return lockstep_.model().config(); }
  const Program& program() const { return program_; }
  Tensor truth(Site site) { return seen_.at(0, site).tensor(); }
  Tensor engine(Site site) { return seen_.at(1, site).tensor(); }
  // A product with its weights rounded, each by itself.
  Step as_read(const Step& step, const WeightType& type) {
    const auto rounding = type.of(step);
    if (!rounding) return step;
    Step own = step;
    own.weights = {};
    for (const Weight* weight : step.weights) {
      Weight& to = weights_.emplace_back(*weight);
      to.type = host::type_of(*rounding);
      to.data = memory_.emplace_back(to.bytes()).data();
      for (std::int64_t e = 0; e < to.experts; ++e)
        for (std::int64_t r = 0; r < to.rows; r += host::weight_block)
          host::round_rows(host::Matrix(*weight, e), r, *rounding, memory_.back().data() + (to.row(e, r) - to.data));
      own.weights.push_back(&to);
    }
    return own;
  }
  // What a step's input i was in the oracle, the choice of experts included.
  host::Values input(const Step& step, std::size_t i) {
    const Stage stage = step.in[i];
    const int layer = info(stage).scope == Scope::layer ? 0 : -1;
    return host::values_of(truth({stage, layer}));
  }

 private:
  static Keys fed(Keys keys) {
    keys.emplace_back("numerics", "f64");
    keys.emplace_back("inputs", "truth");
    return keys;
  }

  Lockstep lockstep_;
  Recorder seen_;
  Program program_;
  std::deque<Weight> weights_;
  std::deque<std::vector<std::byte>> memory_;
};

double relative(const host::Values& a, const host::Values& b) {
  REQUIRE(a.size() == b.size());
  double squares = 0, all = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    squares += (a[i] - b[i]) * (a[i] - b[i]);
    all += b[i] * b[i];
  }
  return std::sqrt(squares / all);
}

constexpr float given_scale = 0.02F;

host::Values product(Beside& run, const Step& step, const Reads& reads) {
  const host::Values x = run.input(step, 0);
  const auto as_read = [&](const Weight& w) {
    const auto rounding = reads.rounding(step, w.type);
    return rounding ? host::rounded(x, *rounding, w.cols, reads.scale == Reads::Scale::must ? given_scale : 0) : x;
  };
  if (step.op == Op::expert_linear) {
    const Tensor ids = run.truth({stages::moe_router_indices, 0});
    return host::expert_linear(host::Matrix(*step.weights[0]),
                               {ids.as<std::int32_t>(), static_cast<std::size_t>(ids.shape.count())}, run.config().used,
                               as_read(*step.weights[0]));
  }
  host::Values all;
  for (int row = 0; row < count; ++row)
    for (const Weight* w : step.weights) {
      const host::Values read = as_read(*w);
      const auto cols = static_cast<std::size_t>(w->cols);
      const host::Values one =
          host::linear(host::Matrix(*w), std::span(read).subspan(static_cast<std::size_t>(row) * cols, cols));
      all.insert(all.end(), one.begin(), one.end());
    }
  return all;
}

// Every type of a cache, and those in blocks rotated, too.
std::vector<std::pair<CacheType, std::string>> cached_ways() {
  std::vector<std::pair<CacheType, std::string>> ways;
  for (const CacheType& type : all_cache_types()) {
    ways.emplace_back(type, "none");
    if (type.rounding && host::block_of(*type.rounding) > 1) ways.emplace_back(type, "hadamard");
  }
  return ways;
}

EngineNumerics cached(const std::string& type) {
  EngineNumerics engine;
  engine.kv_cache = type;
  return engine;
}
EngineNumerics reading(const std::string& name) {
  EngineNumerics engine;
  engine.reads = name;
  return engine;
}

}  // namespace

TEST_CASE("a stage that is stored in 16 bits holds what was computed, rounded") {
  for (const std::string type : {"bf16", "f16"})
    for (const Stage stage : qwen3moe.stages) {
      if (payload_of(stage) == Payload::indices) continue;
      const Site site{stage, info(stage).scope == Scope::layer ? 0 : -1};
      Beside run({{"stored." + std::string(name_of(stage)), type}});
      const Tensor exact = run.truth(site), stored = run.engine(site);
      INFO(name_of(stage) << " in " << type);
      REQUIRE(stored.dtype == (type == "bf16" ? DType::bf16 : DType::f16));
      REQUIRE(stored.shape == exact.shape);
      int wrong = 0;
      for (std::int64_t i = 0; i < exact.shape.count(); ++i) {
        const float expected = type == "bf16" ? float{BF16(exact.value(i))} : float{F16(exact.value(i))};
        wrong += stored.value(i) != static_cast<double>(expected);
      }
      CHECK(wrong == 0);
    }
}

TEST_CASE("products read activations rounded as their weight's type says, and leave the stage as it is") {
  for (const Reads& reads : all_reads())
    for (const std::string quant : {"q4_k_m", "q8_0", "f16"}) {
      Keys keys = {{"reads", std::string(reads.name)}};
      if (reads.scale == Reads::Scale::must) keys.emplace_back("scale", fmt::format("{}", given_scale));
      Beside run(keys, quant);
      for (const Step& step : run.program()) {
        if (!is_product(operator_of(step))) continue;
        const Site site = site_of(step, step.out[0]);
        INFO(reads.name << ", " << quant << ", " << name_of(site.stage));
        CHECK(relative(host::values_of(run.engine(site)), product(run, step, reads)) < 1e-12);
      }
      for (const Stage stage : {stages::attn_norm, stages::ffn_norm, stages::attention, stages::moe_expert_swiglu})
        CHECK(host::values_of(run.engine({stage, 0})) == host::values_of(run.truth({stage, 0})));
    }
}

TEST_CASE("products read rounded weights, and all else reads the file's") {
  for (const WeightType& type : all_weight_types())
    for (const std::string quant : {"q4_k_m", "bf16"}) {
      Beside run({{"weights", std::string(type.name)}}, quant);
      for (const Step& step : run.program()) {
        if (step.weights.size() == 0) continue;
        for (const Stage stage : step.out) {
          const Site site = site_of(step, stage);
          INFO(type.name << ", " << quant << ", " << name_of(site.stage));
          const host::Values own = host::values_of(run.engine(site)), exact = host::values_of(run.truth(site));
          if (!type.of(step)) CHECK(own == exact);
          const bool are_bf16 = std::all_of(step.weights.begin(), step.weights.end(),
                                            [](const Weight* w) { return w->type == BlockType::bf16; });
          if (type.rounding == host::WeightRounding::bf16 && are_bf16) CHECK(own == exact);
        }
        if (!is_product(operator_of(step))) continue;
        const Site site = site_of(step, step.out[0]);
        CHECK(relative(host::values_of(run.engine(site)), product(run, run.as_read(step, type), *find_reads("exact"))) <
              1e-12);
      }
    }
}

TEST_CASE("the table of a tied head is rounded for the head, and tokens read it as it is") {
  SyntheticSpec spec{.layers = 1};
  const Model model = Model::synthetic(spec);
  const ModelView& view = model.view();
  Program tied = build_program(model);
  tied.back().weights = tied.front().weights;
  RoundedWeights rounded(view, tied, *find_weight_type("bf16"));
  rounded.make();
  const Weight &table = *rounded.program().front().weights[0], &head = *rounded.program().back().weights[0];
  CHECK(table.data == model.weight("token_embd").data);
  CHECK(head.type == BlockType::bf16);
  CHECK(&head == &rounded.view().weights.back());
  CHECK(rounded.view().weights.size() == view.weights.size() + 1);
  std::uint64_t bytes = 0;
  for (const Weight& weight : rounded.view().weights)
    if (weight.type == BlockType::bf16) bytes += weight.bytes();
  CHECK(rounded.bytes() == bytes);
}

TEST_CASE("weights of the type that they would be rounded to are read where they are") {
  SyntheticSpec spec{.layers = 1};
  spec.quant = "bf16";
  const Model model = Model::synthetic(spec);
  const Program program = build_program(model);
  RoundedWeights rounded(model.view(), program, *find_weight_type("bf16"));
  rounded.make();
  for (std::size_t i = 0; i < model.view().weights.size(); ++i) {
    const Weight &from = model.view().weights[i], &to = rounded.view().weights[i];
    CAPTURE(from.name);
    CHECK((from.type != BlockType::bf16 || to.data == from.data));
  }
  RoundedWeights blocks(model.view(), program, *find_weight_type("fp8_block"));
  CHECK(blocks.bytes() > 0);
}

TEST_CASE("keys and values are rounded into the cache, and stay as they are in their stages") {
  for (const auto& [type, rotation] : cached_ways()) {
    Beside run({{"kv_cache", std::string(type.name)}, {"kv_rotate", rotation}});
    const ModelConfig& c = run.config();
    const std::int64_t block = rotation == "hadamard" ? c.head_dim : 0;
    REQUIRE(c.head_dim == 64);
    const HeadSizes sizes{c.heads, c.kv_heads, c.head_dim};
    const auto kept = [&](Stage stage, int column) {
      host::Values cache;
      const Tensor all = run.truth({stage, 0});
      for (int row = 0; row < count; ++row) {
        const host::Values one = host::values_of(all, row, 1);
        const std::span<const double> part(one.data() + column, static_cast<std::size_t>(c.kv_width()));
        const host::Values rounded = type.rounding ? host::rounded_when_rotated(part, *type.rounding, block)
                                                   : host::Values(part.begin(), part.end());
        cache.insert(cache.end(), rounded.begin(), rounded.end());
      }
      return cache;
    };
    const host::Values keys = kept(stages::k_post_rope, 0);
    const host::Values values = kept(stages::qkv_matmul, c.q_width() + c.kv_width());
    host::Values scores, mixed;
    for (int row = 0; row < count; ++row) {
      const host::Attention attention(sizes, row + 1, count, c.kv_width());
      const host::Values s = host::scores(attention, host::values_of(run.truth({stages::q_post_rope, 0}), row, 1), keys,
                                          1 / std::sqrt(c.head_dim));
      const host::Values m =
          host::mix(attention, host::values_of(run.truth({stages::attn_softmax, 0}), row, 1), values);
      scores.insert(scores.end(), s.begin(), s.end());
      mixed.insert(mixed.end(), m.begin(), m.end());
    }
    INFO(type.name << ", rotated: " << rotation);
    CHECK(relative(host::values_of(run.engine(scores_site)), scores) < 1e-12);
    CHECK(relative(host::values_of(run.engine(mix_site)), mixed) < 1e-12);
    for (const Stage stage : {stages::k_post_rope, stages::qkv_matmul})
      CHECK(host::values_of(run.engine({stage, 0})) == host::values_of(run.truth({stage, 0})));
  }
}

TEST_CASE("an engine's bytes do not depend on chunks, nor on who looks") {
  const Keys engine{
      {"numerics", "f32"}, {"reads", "q8_0"}, {"stored", "hf"}, {"kv_cache", "q8_0"}, {"kv_rotate", "hadamard"}};
  Lockstep lockstep(Model::synthetic({.layers = 2}), {lane_spec("engine", engine)}, count);
  const Recorder whole = lockstep.record(tokens);
  for (const int chunk : {1, 2, 4}) {
    Recorder seen = lockstep.record(tokens, chunk);
    for (const auto& [key, stage] : whole.all())
      if (!is(key.second.stage, Role::key_values)) CHECK(seen.all().at(key) == stage);
  }
  Recorder last(1, false);
  lockstep.run(tokens, {&last});
  for (const auto& [key, stage] : last.all()) CHECK(whole.all().at(key) == stage);
}

TEST_CASE("rows that are no whole number of blocks are refused before anything is computed") {
  const Model model = Model::synthetic({.layers = 1});
  const Program program = build_program(model);
  ModelConfig narrow = model.config();
  narrow.head_dim = 20;
  CHECK(obstacle_to_rounding(cached("q8_0"), program, model.config()).empty());
  CHECK(obstacle_to_rounding(cached("q8_0"), program, narrow) ==
        "kv_cache: q8_0: rows of keys have 40 values, no whole number of blocks of 32");
  CHECK(obstacle_to_rounding(cached("f16"), program, narrow).empty());
  EngineNumerics rotated = cached("q8_0");
  rotated.kv_rotate = "hadamard";
  CHECK(obstacle_to_rounding(rotated, program, model.config()).empty());
  Program small_heads = program;
  for (Step& step : small_heads)
    if (auto* params = std::get_if<ScoresParams>(&step.params)) params->sizes.head_dim = 32;
  CHECK(obstacle_to_rounding(rotated, small_heads, model.config()) ==
        "kv_rotate: hadamard: heads of keys have 32 values, no multiple of 64");
  Weight odd = *program[2].weights[0];
  odd.cols = 100;
  Program bent = program;
  bent[2].weights = {&odd};
  CHECK(obstacle_to_rounding(reading("fp8_128"), bent, model.config()).find("no whole number of blocks of 128") !=
        std::string::npos);
  CHECK(obstacle_to_rounding(reading("fp8_token"), bent, model.config()).empty());
  EngineNumerics with_scale = reading("fp8_static");
  with_scale.scales = {{stages::attn_norm, 0.02F}, {stages::attention, 0.02F}};
  CHECK(obstacle_to_rounding(with_scale, program, model.config()) ==
        "reads: fp8_static: blk.0.ffn_gate_exps.weight reads ffn_norm, which has no scale: give it one, or one to all");
  EngineNumerics both = reading("q8_k");
  both.weights = "fp8_block";
  CHECK(obstacle_to_rounding(both, program, model.config()).find("weights: fp8_block gives them another one") !=
        std::string::npos);
}

}  // namespace moe_diag::test
