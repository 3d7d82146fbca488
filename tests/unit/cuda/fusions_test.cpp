// SPDX-License-Identifier: MIT
// Which steps the cuda lanes run as one: what the program has, and nothing that only looks like it.
#include "plugins/backends/cuda/fusions.hpp"

#include <algorithm>

#include "core/forward/program.hpp"
#include "core/model/model.hpp"
#include "tests/support/catch.hpp"

namespace moe_diag::cuda {
namespace {

const Model& model() {
  static const Model made = Model::synthetic({});
  return made;
}

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
  From from(Stage::q_norm);
  CHECK(attention_steps(from.steps()) == 7);
  CHECK(attention_steps(from.steps().first(6)) == 0);
  CHECK(attention_steps(From(Stage::k_norm).steps()) == 0);
  from.steps()[3].params.theta += 1;
  CHECK(attention_steps(from.steps()) == 0);
}

TEST_CASE("softmax and topk belong together where the softmax is the router's") {
  CHECK(routing_steps(From(Stage::moe_router_probs).steps()) == 2);
  CHECK(routing_steps(From(Stage::moe_router_probs).steps().first(1)) == 0);
  CHECK(routing_steps(From(Stage::attn_softmax).steps()) == 0);
}

TEST_CASE("gate and up belong together, and swiglu with them, unless their weights are of two kinds") {
  From from(Stage::moe_expert_gate);
  CHECK(gated_steps(from.steps()) == 3);
  CHECK(paired_steps(from.steps()) == 2);
  CHECK(gated_steps(from.steps().first(2)) == 0);
  CHECK(paired_steps(from.steps().first(2)) == 2);
  CHECK(paired_steps(From(Stage::moe_expert_up).steps()) == 0);

  Weight other = *from.steps()[1].weights[0];
  other.type = BlockType::f16;
  from.steps()[1].weights = {&other};
  CHECK(gated_steps(from.steps()) == 0);
  CHECK(paired_steps(from.steps()) == 0);
}

TEST_CASE("what a layer adds to its residual, and the norm behind it") {
  From from(Stage::moe_expert_weighted);
  Sum sum = sum_steps(from.steps());
  CHECK(sum.steps == 4);  // weigh, combine, add and the next layer's norm
  REQUIRE(sum.weigh != nullptr);
  REQUIRE(sum.norm != nullptr);
  CHECK(sum.add->out[0] == Stage::post_ffn_residual);
  CHECK(sum.norm->out[0] == Stage::attn_norm);
  CHECK(sum_steps(from.steps().first(3)).norm == nullptr);
  CHECK(sum_steps(from.steps().first(2)).steps == 0);

  sum = sum_steps(From(Stage::post_attn_residual).steps());
  CHECK(sum.steps == 2);
  CHECK(sum.weigh == nullptr);
  CHECK(sum.norm->out[0] == Stage::ffn_norm);
  CHECK(sum_steps(From(Stage::moe_ffn_out).steps()).steps == 0);
}

}  // namespace moe_diag::cuda
