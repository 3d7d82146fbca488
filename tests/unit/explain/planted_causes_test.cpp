// SPDX-License-Identifier: MIT
// Mistakes that engines make, planted as a contract plants them: a report calls each by its name. In a lane that stores
// bf16 the rounding may hide the name, and then the step is an operator.
#include <fmt/format.h>

#include <set>
#include <string>
#include <vector>

#include "core/verdict/divergence.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/small_contract.hpp"

namespace moe_diag {
namespace {

using Catch::Matchers::Contains;

struct Mistake {
  std::string fault, cause, text;  // `text`: a part of what the report says
};

const std::vector<Mistake> mistakes = {
    {"eps, stage: ffn_norm, layer: 1", "eps", "an eps of 0.001 instead of 1e-06"},
    {"eps, stage: q_norm, layer: 1, eps: 1e-5", "eps", "an eps of 1e-05"},
    {"norm, stage: attn_norm, layer: 1", "function", "the weight + 1"},
    {"norm, stage: final_norm, form: layer_norm", "function", "a layer norm"},
    {"norm, stage: k_norm, layer: 2, form: whole_row", "function", "one norm over all 2 heads"},
    {"activation, stage: moe_expert_swiglu, layer: 1", "function", "gelu(gate)"},
    {"activation, stage: moe_expert_swiglu, layer: 1, form: gelu_tanh", "function", "gelu(gate)"},
    {"activation, stage: moe_expert_swiglu, layer: 1, form: relu", "function", "relu(gate)"},
    {"activation, stage: moe_expert_swiglu, layer: 1, form: silu_1702", "function", "sigmoid(1.702 gate)"},
    {"activation, stage: moe_expert_swiglu, layer: 1, form: gpt_oss", "function", "(up + 1)"},
    {"gate_up, stage: moe_expert_swiglu, layer: 1", "permutation", "gate and up changed places"},
    {"gate_up, stage: moe_expert_swiglu, layer: 1, form: pairs", "permutation", "gate and up read as pairs"},
    {"gate_up, stage: moe_expert_swiglu, layer: 1, form: halves", "permutation", "read as halves"},
    {"gating, stage: moe_router_probs, layer: 1", "function", "the sigmoid of each logit"},
    {"gating, stage: moe_router_weights, layer: 1", "function", "the softmax of the probabilities"},
    {"renormalisation, stage: moe_router_weights, layer: 1", "skipped", "not divided by their sum"},
    {"duplicate_ids, stage: moe_router_indices, layer: 1", "routing_real", "twice"},
    {"rope_partial, stage: q_post_rope, layer: 1", "rotation", "only the first 32 of 64 columns"},
    {"rope_scaled, stage: k_post_rope, layer: 1, factor: 4", "rotation", "the positions are divided by 4"},
    {"position_restart, stage: k_post_rope, layer: 1, every: 3", "shifted_position", "start again at 0 after every 3"},
    {"window, stage: attn_softmax, layer: 1", "window", "only the last 2 keys count"},
    {"softmax_scale, stage: attn_scores, layer: 1", "scale", "1/sqrt(64) was left out"},
    {"softmax_scale, stage: attn_scores, layer: 1, times: 2", "scale", "1/sqrt(64) was applied twice"},
    {"partial_sum, stage: attn_out, layer: 1", "partial_sum", "only columns 0 to 255 of the 512"},
    {"partial_sum, stage: moe_expert_out, layer: 1, times: 2", "partial_sum", "are added twice"},
    {"partial_sum, stage: moe_ffn_out, layer: 1", "partial_sum", "the experts of slots 1, 2 are missing"},
    {"partial_sum, stage: moe_ffn_out, layer: 1, part: 1, times: 2", "partial_sum", "slots 1 are added twice"},
    {"accumulate, stage: moe_expert_up, layer: 1", "accumulation", "kept in BF16"},
    {"accumulate, stage: moe_ffn_out, layer: 1, type: F16", "accumulation", "kept in F16, added by slot"},
    {"cache_type, stage: attn_scores, layer: 1", "cache_type", "the keys are rounded to Q8_0"},
    {"cache_type, stage: attention, layer: 1, type: Q4_0", "cache_type", "the values are rounded to Q4_0"},
    {"wrong_scale, stage: moe_expert_out, layer: 0", "permutation", "has the scale of the group before it"},
    {"wrong_scale, stage: qkv_matmul, layer: 1", "permutation", "has the scale of the group before it"},
    {"f16_overflow, stage: moe_expert_out, layer: 1, limit: 1e-6", "nonfinite_origin", ""},
};

// Null: nothing is falsified.
const Divergence* first_divergence(const Mistake& mistake, const std::string& numerics) {
  std::string text = contract_text(
      "  - {id: ERROR, claim: c, lane: step, stage: all, metric: noise_ratio, floor: expected, at_most: 10}\n"
      "  - {id: ROUTING, claim: c, lane: step, stage: moe_router_indices, metric: routing_real_flips, equals: 0}\n",
      "{synthetic: tiny, seed: 7}", "[3, 141, 59, 26, 53, 7, 400]");
  const std::string fed = "numerics: f32, inputs";
  text.replace(text.find(fed), fed.size(), numerics + ", inputs");
  static ModelCache models;
  RunOptions options;
  options.models = &models;
  static Verdict verdict;
  verdict = judge_text(text, options, {fmt::format("{{inject: {}, lane: step}}", mistake.fault)});
  CHECK(verdict.failure.empty());
  return verdict.diagnosis.divergences.empty() ? nullptr : &verdict.diagnosis.divergences.front();
}

}  // namespace

TEST_CASE("mistakes of engines that are planted are called by their names") {
  for (const Mistake& mistake : mistakes) {
    INFO(mistake.fault);
    const Divergence* d = first_divergence(mistake, "numerics: f32");
    REQUIRE(d);
    INFO(name_of(d->cause) << " " << d->text);
    CHECK(name_of(d->cause) == mistake.cause);
    CHECK_THAT(d->text, Contains(mistake.text));
  }
}

TEST_CASE("in a lane that stores bf16 they are called by their names, or operators, and never something else") {
  // As small as one rounding of the stage.
  const std::set<std::string> within_rounding = {"eps", "accumulate", "cache_type"};
  int named = 0, found = 0;
  for (const Mistake& mistake : mistakes) {
    INFO(mistake.fault);
    const Divergence* d = first_divergence(mistake, "numerics: f32, stored: hf");
    if (!d) {
      CHECK(within_rounding.count(mistake.fault.substr(0, mistake.fault.find(','))) == 1);
      continue;
    }
    INFO(name_of(d->cause) << " " << d->text);
    CHECK((name_of(d->cause) == mistake.cause || d->cause == Cause::plain_operator));
    named += name_of(d->cause) == mistake.cause;
    ++found;
  }
  INFO(named << " of " << found);
  CHECK(found >= 26);
  CHECK(named * 10 >= found * 9);
}

}  // namespace moe_diag
