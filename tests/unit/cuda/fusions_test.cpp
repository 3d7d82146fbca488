// SPDX-License-Identifier: MIT
// Which steps the cuda lanes run as one: what the program has, and nothing that only looks like it.
#include "plugins/backends/cuda/fusions.hpp"

#include <algorithm>

#include "core/model/model.hpp"
#include "core/model/program.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag::cuda {
namespace {

const Model& model() {
  static const Model made = Model::synthetic({});
  return made;
}

const ModelConfig& config() { return model().config(); }

constexpr CacheInfo state{.name = "state",
                          .row = {Dim{"x", [](const ModelConfig& c, int) -> std::int64_t { return c.kv_width(); }}},
                          .is_state = true};

// The program from the step of layer 1 on that writes the stage.
struct From {
  Program program = build_program(model());
  std::size_t at = 0;

  explicit From(Stage stage) {
    while (program[at].layer != 1 || program[at].out[0] != stage) ++at;
  }
  std::span<Step> steps() { return std::span<Step>(program).subspan(at); }
};

}  // namespace

TEST_CASE("the steps of attention belong together, up to mix") {
  From from(stages::q_norm);
  CHECK(attention_steps(from.steps(), config()) == 7);
  CHECK(attention_steps(from.steps().first(6), config()) == 0);
  CHECK(attention_steps(From(stages::k_norm).steps(), config()) == 0);
  from.steps()[3].params = RopeParams{.head_dim = config().head_dim, .theta = 7};
  CHECK(attention_steps(from.steps(), config()) == 0);
}

TEST_CASE("steps that move a state on, or read wider rows of a cache than their heads', are left to plain operators") {
  From from(stages::attn_scores);
  for (const std::size_t at : {std::size_t{0}, std::size_t{2}}) {
    Step& step = from.steps()[at];
    const Step right = step;
    CHECK(computes(step, config()));
    step.caches = {CacheUse{Cache(state), 1, 0}};
    CHECK_FALSE(computes(step, config()));
    step = right;
    HeadSizes& sizes =
        step.op == Op::scores ? std::get<ScoresParams>(step.params).sizes : std::get<MixParams>(step.params).sizes;
    sizes.head_dim /= 2;
    CHECK_FALSE(computes(step, config()));
  }
  Step& softmax = from.steps()[1];
  CHECK(computes(softmax, config()));
  softmax.caches = {CacheUse{Cache(state), -1, 0}};
  CHECK_FALSE(computes(softmax, config()));
}

TEST_CASE("softmax and topk belong together where the softmax is the router's") {
  CHECK(routing_steps(From(stages::moe_router_probs).steps()) == 2);
  CHECK(routing_steps(From(stages::moe_router_probs).steps().first(1)) == 0);
  CHECK(routing_steps(From(stages::attn_softmax).steps()) == 0);
}

TEST_CASE("gate and up belong together, and swiglu with them, unless their weights are of two kinds") {
  From from(stages::moe_expert_gate);
  CHECK(gated_steps(from.steps()) == 3);
  CHECK(paired_steps(from.steps()) == 2);
  CHECK(gated_steps(from.steps().first(2)) == 0);
  CHECK(paired_steps(from.steps().first(2)) == 2);
  CHECK(paired_steps(From(stages::moe_expert_up).steps()) == 0);

  Weight other = *from.steps()[1].weights[0];
  other.type = BlockType::f16;
  from.steps()[1].weights = {&other};
  CHECK(gated_steps(from.steps()) == 0);
  CHECK(paired_steps(from.steps()) == 0);
}

TEST_CASE("what a layer adds to its residual, and the norm behind it") {
  From from(stages::moe_expert_weighted);
  Sum sum = sum_steps(from.steps(), config().hidden);
  CHECK(sum.steps == 4);  // weigh, combine, add and the next layer's norm
  REQUIRE(sum.weigh != nullptr);
  REQUIRE(sum.norm != nullptr);
  CHECK(sum.add->out[0] == stages::post_ffn_residual);
  CHECK(sum.norm->out[0] == stages::attn_norm);
  CHECK(sum_steps(from.steps().first(3), config().hidden).norm == nullptr);
  CHECK(sum_steps(from.steps().first(2), config().hidden).steps == 0);

  sum = sum_steps(From(stages::post_attn_residual).steps(), config().hidden);
  CHECK(sum.steps == 2);
  CHECK(sum.weigh == nullptr);
  CHECK(sum.norm->out[0] == stages::ffn_norm);
  CHECK(sum_steps(From(stages::moe_ffn_out).steps(), config().hidden).steps == 0);
}

namespace {

// How many steps a pattern takes from there on.
std::size_t fused(Stage first, std::span<const Step> steps) {
  if (first == stages::q_norm) return attention_steps(steps, config());
  if (first == stages::moe_router_probs) return routing_steps(steps);
  if (first == stages::moe_expert_gate) return gated_steps(steps);
  return sum_steps(steps, config().hidden).steps;
}

// The same parameters with one of them moved, for each of them. An operator without parameters gets some.
std::vector<Params> with_one_moved(const Params& params) {
  std::vector<Params> all;
  const auto add = [&](auto moved, auto change) {
    change(moved);
    all.push_back(moved);
  };
  if (const auto* norm = std::get_if<RmsNormParams>(&params)) {
    add(*norm, [](RmsNormParams& m) { m.offset += 2; });
    add(*norm, [](RmsNormParams& m) { m.width += 2; });
  }
  if (const auto* rope = std::get_if<RopeParams>(&params)) {
    add(*rope, [](RopeParams& m) { m.offset += 2; });
    add(*rope, [](RopeParams& m) { m.head_dim += 2; });
    add(*rope, [](RopeParams& m) { m.theta += 1; });
  }
  if (const auto* scores = std::get_if<ScoresParams>(&params)) {
    add(*scores, [](ScoresParams& m) { m.sizes.heads += m.sizes.kv_heads; });
    add(*scores, [](ScoresParams& m) { m.sizes.kv_heads = 1; });
    add(*scores, [](ScoresParams& m) { m.sizes.head_dim += 2; });
  }
  if (const auto* mix = std::get_if<MixParams>(&params)) {
    add(*mix, [](MixParams& m) { m.sizes.heads += m.sizes.kv_heads; });
    add(*mix, [](MixParams& m) { m.sizes.kv_heads = 1; });
    add(*mix, [](MixParams& m) { m.sizes.head_dim += 2; });
  }
  if (const auto* softmax = std::get_if<SoftmaxParams>(&params))
    add(*softmax, [](SoftmaxParams& m) { m.causal = !m.causal; });
  if (const auto* topk = std::get_if<TopkParams>(&params))
    add(*topk, [](TopkParams& m) { m.renormalised = !m.renormalised; });
  if (std::holds_alternative<std::monostate>(params)) all.emplace_back(SoftmaxParams{});
  return all;
}

// The same use of a cache with one part of it moved; of a step that reads none, one that does.
std::vector<CacheUse> with_one_moved(const Few<CacheUse, most_caches>& caches) {
  if (caches.size() == 0) return {CacheUse{caches::keys, 0, 0}};
  std::vector<CacheUse> all(3, caches[0]);
  all[0].input = 0;
  all[1].column += 2;
  all[2].cache = Cache(state);
  return all;
}

}  // namespace

TEST_CASE("a parameter that is not Qwen3's takes a step out of what is run as one") {
  const Weight bias;
  for (const Stage first : {stages::q_norm, stages::moe_router_probs, stages::moe_expert_gate,
                            stages::moe_expert_weighted, stages::post_attn_residual}) {
    From from(first);
    const std::size_t all = fused(first, from.steps());
    REQUIRE(all >= 2);
    for (std::size_t i = 0; i < all; ++i) {
      Step& step = from.steps()[i];
      const Step right = step;
      INFO(name_of(first) << ", step " << i);
      for (const Params& moved : with_one_moved(step.params)) {
        step.params = moved;
        CHECK(fused(first, from.steps()) < all);
        step = right;
      }
      for (const CacheUse& use : with_one_moved(step.caches)) {
        step.caches = {use};
        CHECK(fused(first, from.steps()) < all);
        step = right;
      }
      step.biases = {&bias};
      CHECK(fused(first, from.steps()) < all);
      step = right;
    }
    CHECK(fused(first, from.steps()) == all);
  }
}

}  // namespace moe_diag::cuda
