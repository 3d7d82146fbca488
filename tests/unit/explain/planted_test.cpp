// SPDX-License-Identifier: MIT
// Faults that the model or the lanes cannot have are refused; those that are part of a contract are treated as those of
// the command line.
#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "core/report/plan_report.hpp"
#include "core/report/report.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/small_contract.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag {
namespace {

using Catch::Matchers::Contains;

const std::string claim =
    "  - {id: ERROR, claim: steps are right, lane: step, stage: all, metric: rel_l2, at_most: 1e-5}\n";

std::string with_planted(const std::string& faults, const std::string& text = contract_text(claim)) {
  std::string planted = text;
  return planted.insert(planted.find("falsifiers:"), "planted: [" + faults + "]\n");
}

std::string with_control(const std::string& fault) {
  std::string falsifier = claim;
  return contract_text(falsifier.insert(falsifier.rfind('}'), ", controls: [{" + fault + "}]"));
}

// What the run says; empty when it takes the fault.
std::string refusal(const std::string& text, RunOptions options, const std::vector<std::string>& inject) {
  try {
    judge_text(text, std::move(options), inject);
  } catch (const Error& e) {
    CHECK(e.kind() == ErrorKind::usage);
    return e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("faults that the model or the lane cannot have are refused wherever they stand") {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"inject: inf, stage: attn_out, layer: 4", "layer 4 is not there, the model has layers 0 to 3"},
      {"inject: inf, stage: attn_out, layer: 1, index: 256", "element 256 is not there"},
      {"inject: bitflip, stage: moe_router_weights, layer: 1, index: 3", "element 3 is not there"},
      {"inject: bitflip, stage: attn_out, layer: 1, bit: 32",
       "bit 32 is not there, the values of lane 'step' are f32 and have bits 0 to 31"},
      {"inject: zero, stage: moe_expert_up, layer: 1, expert: 12", "expert 12 is not there"},
      {"inject: wrong_type, stage: moe_router_logits, layer: 1", "the weight there is F32: name a 'type'"},
      {"inject: wrong_type, stage: attn_out, layer: 1, type: Q4_K", "the weight there is Q4_K: name another 'type'"},
      {"inject: rope_theta, stage: q_post_rope, layer: 1, theta: 1e6", "is the model's own theta: give another"},
      {"inject: stale_kv, stage: attn_scores, layer: 1, positions: 0", "nothing at position 0"},
      {"inject: eps, stage: attn_norm, layer: 1, eps: 1e-6", "is the model's own eps: give another"},
      {"inject: rope_partial, stage: q_post_rope, layer: 1, columns: 64", "64 of 64 columns of a head: give an even"},
      {"inject: rope_partial, stage: q_post_rope, layer: 1, columns: 7", "7 of 64 columns of a head: give an even"},
      {"inject: window, stage: attn_softmax, layer: 1, keys: 3", "nothing at positions 0 to 2"},
      {"inject: position_restart, stage: k_post_rope, layer: 1, every: 9", "nothing at positions 0 to 8"},
      {"inject: partial_sum, stage: attn_out, layer: 1, part: 0..513", "part 0..513 is not there, the sum is of 512"},
      {"inject: partial_sum, stage: moe_ffn_out, layer: 1, part: all", "part all is all 3 slots of experts"},
      {"inject: wrong_scale, stage: moe_router_logits, layer: 1", "it changes nothing, a row has no two scales"},
      {"inject: rope_interleaved, stage: k_post_rope, layer: 1, positions: 0", "nothing at position 0"},
  };
  for (const auto& [fault, message] : cases) {
    INFO(fault);
    const std::string in_lane = "{" + fault + ", lane: step}";
    CHECK_THAT(refusal(contract_text(claim), {}, {in_lane}), Contains("--inject: ") && Contains(message));
    CHECK_THAT(refusal(with_planted(in_lane), {}, {}), Contains("test.yaml:10:") && Contains(message));
    RunOptions options;
    options.controls = true;
    CHECK_THAT(refusal(with_control(fault), options, {}), Contains("test.yaml:") && Contains(message));
  }
}

TEST_CASE("faults that need other experts, pairs or blocks are refused where there are none") {
  const auto refused = [](const std::string& model, const std::string& fault) {
    const std::string source = fmt::format("{{gguf: \"{}/tests/golden/hf/{}.gguf\"}}", MOE_DIAG_SOURCE_DIR, model);
    return refusal(contract_text(claim, source, "[1, 2, 3]"), {}, {fault});
  };
  const std::string one = "one_expert", all = "all_experts", odd = "odd_widths";
  CHECK_THAT(refused(one, "{inject: uniform_weights, stage: moe_router_weights, layer: 0, lane: step}"),
             Contains("the weight of one expert alone is 1"));
  CHECK_THAT(refused(one, "{inject: wrong_expert, stage: moe_expert_up, layer: 0, lane: step}"),
             Contains("there is no other expert, the model uses 1 of 1"));
  CHECK_THAT(refused(one, "{inject: duplicate_ids, stage: moe_router_indices, layer: 0, lane: step}"),
             Contains("the model uses one expert"));
  CHECK_THAT(refused(one, "{inject: partial_sum, stage: moe_ffn_out, layer: 0, lane: step}"),
             Contains("the model uses one expert"));
  CHECK_THAT(refused(all, "{inject: swap_tie, stage: moe_router_indices, layer: 0, lane: step}"),
             Contains("there is no other expert"));
  CHECK_THAT(refused(odd, "{inject: quantise_activations, stage: moe_router_logits, layer: 0, lane: step}"),
             Contains("no whole number of blocks"));
  CHECK_THAT(refused(odd, "{inject: wrong_type, stage: moe_router_logits, layer: 0, type: Q6_K, lane: step}"),
             Contains("cannot be read as Q6_K: its rows have"));
}

TEST_CASE("bits above 31 are there in lanes of doubles") {
  const std::string text = contract_text(
      "  - {id: ERROR, claim: c, lane: free, against: truth, stage: all, metric: rel_l2, at_most: 1e-5}\n");
  const Verdict verdict = judge_text(text, {}, {"{inject: bitflip, stage: attn_out, layer: 1, bit: 62, lane: truth}"});
  REQUIRE(verdict.first_divergence());
  CHECK(verdict.first_divergence()->leading_failure()->site == Site{stages::attn_out, 1});
}

TEST_CASE("a fault that is part of the contract is treated as one of the command line, and told") {
  const std::string fault = "{inject: wrong_type, stage: moe_expert_out, layer: 2, lane: step}";
  const Verdict planted = judge_text(with_planted(fault), {});
  const Verdict injected = judge_text(contract_text(claim), {}, {fault});
  const std::string told = "wrong_type at moe_expert_out, layer 2, lane step";
  for (const Verdict* verdict : {&planted, &injected}) {
    CHECK(verdict->planted == std::vector<std::string>{told});
    REQUIRE(verdict->first_divergence());
    CHECK(verdict->first_divergence()->leading_failure()->site == Site{stages::moe_expert_out, 2});
  }
  CHECK(planted.first_divergence()->failing == injected.first_divergence()->failing);
  const Verdict both = judge_text(with_planted(fault), {}, {"{inject: nan, stage: attn_out, layer: 1, lane: step}"});
  CHECK(both.planted == std::vector<std::string>{told, "nan at attn_out, layer 1, lane step"});
  CHECK(both.first_divergence()->leading_failure()->site == Site{stages::attn_out, 1});
}

TEST_CASE("a planted fault that nothing looks at, or that changes nothing, is told with its place") {
  CHECK_THAT(refusal(with_planted("{inject: nan, stage: attn_out, layer: 1, lane: free}"), {}, {}),
             Contains("test.yaml:10:11: fault 'nan at attn_out, layer 1': nothing looks at lane 'free'"));
  const std::string text = contract_text(
      "  - {id: FINITE, claim: c, lane: step, stage: lm_head, positions: last, metric: nonfinite, equals: 0}\n");
  const Verdict verdict = judge_text(with_planted("{inject: inf, stage: lm_head, positions: 0, lane: step}", text), {});
  CHECK_THAT(verdict.failure, Contains("fault 'inf at lm_head, positions 0, lane step' changed nothing"));
  CHECK(verdict.failure_is_usage);
}

TEST_CASE("a fault planted in a lane that is absent leaves its claims untested") {
  std::string text = with_planted("{inject: nan, stage: attn_out, layer: 1, lane: step}");
  const std::string step = "step: {backend: cpu";
  text.replace(text.find(step), step.size(), "step: {backend: abacus");
  const Verdict verdict = judge_text(text);
  CHECK(verdict.failure.empty());
  CHECK(verdict.count(Outcome::untested) == 1);
}

TEST_CASE("a plan names the faults that are part of the contract") {
  const Contract contract =
      parse_contract(with_planted("{inject: nan, stage: moe_expert_out, layer: 1, lane: step}"), "test.yaml");
  PluginHost host({MOE_DIAG_PLUGINS});
  const PlanReport plan = plan_contract(contract, host, {});
  const std::string fault = "nan at moe_expert_out, layer 1, lane step";
  CHECK_THAT(plan_report(plan), Contains("planted    " + fault));
  CHECK(nlohmann::json::parse(plan_json(plan, "test"))["planted"].at(0) == fault);
}

}  // namespace moe_diag
