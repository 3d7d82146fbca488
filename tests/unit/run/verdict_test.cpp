// SPDX-License-Identifier: MIT
// What a run makes of its falsifiers: outcomes, controls, absences, reports.
#include <nlohmann/json.hpp>

#include "core/report/report.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/small_contract.hpp"

namespace moe_diag {
namespace {

using Catch::Matchers::Contains;

Verdict with_controls(const std::string& falsifiers) {
  RunOptions options;
  options.controls = true;
  return judge_text(contract_text(falsifiers), options);
}

}  // namespace

TEST_CASE("a falsifier that survives its control is vacuous") {
  const Verdict verdict = with_controls(R"(
  - id: BLIND
    claim: a bound so wide that nothing crosses it
    lane: step
    stage: moe_ffn_out
    metric: max_abs_diff
    at_most: 1e9
    controls: [{inject: scale, stage: moe_ffn_out, layer: 1, factor: 3}]
)");
  REQUIRE(verdict.judgements.size() == 1);
  CHECK(verdict.judgements[0].outcome == Outcome::vacuous);
  CHECK_THAT(verdict.judgements[0].reason, Contains("survived"));
  CHECK_THAT(console_report(verdict, false), Contains("VACUOUS"));
}

TEST_CASE("a control must be found where it was planted, not somewhere later") {
  const Verdict verdict = with_controls(R"(
  - id: LATE
    claim: the free lane is near the truth
    lane: free
    stage: [moe_expert_gate, lm_head]
    metric: rel_l2
    at_most: 1e-3
    controls: [{inject: scale, stage: moe_expert_up, layer: 0, factor: 100}]
)");
  CHECK(verdict.judgements[0].outcome == Outcome::held);
  REQUIRE(verdict.judgements[0].controls.size() == 1);
  CHECK(verdict.judgements[0].controls[0].tripped);
}

TEST_CASE("a control that is found later than expected does not count") {
  const Verdict verdict = with_controls(R"(
  - id: INSENSITIVE
    claim: coarse
    lane: free
    stage: [attn_norm, lm_head]
    layers: 1
    metric: rel_l2
    at_most: 0.9
    controls: [{inject: scale, stage: lm_head, factor: 3}, {inject: scale, stage: embedding, factor: 1.0001}]
)");
  CHECK(verdict.judgements[0].outcome == Outcome::vacuous);
  REQUIRE(verdict.judgements[0].controls.size() == 2);
  CHECK(verdict.judgements[0].controls[0].tripped);
  CHECK_FALSE(verdict.judgements[0].controls[1].tripped);
}

TEST_CASE("an absent model leaves everything untested, by name") {
  for (const std::string model : {"{gguf: \"${MOE_DIAG_TEST_NO_SUCH_VARIABLE}\"}", "{gguf: /no/such/model.gguf}"}) {
    const Verdict verdict = judge_text(contract_text(R"(
  - {id: A, claim: a, lane: free, stage: lm_head, metric: rel_l2, at_most: 1}
)",
                                                     model));
    REQUIRE(verdict.judgements.size() == 1);
    CHECK(verdict.judgements[0].outcome == Outcome::untested);
    CHECK_THAT(verdict.judgements[0].reason, Contains("the model is absent"));
    CHECK_THAT(console_report(verdict, false), Contains("UNTESTED"));
  }
}

TEST_CASE("a lane whose backend is not there leaves what needs it untested, and only that") {
  std::string text = contract_text(R"(
  - {id: HERE, claim: a, lane: free, stage: lm_head, metric: rel_l2, at_most: 1}
  - {id: GONE, claim: a, lane: far, stage: lm_head, metric: rel_l2, at_most: 1}
  - {id: FED, claim: a, lane: fed, stage: lm_head, metric: rel_l2, at_most: 1}
)");
  text.replace(text.find("falsifiers:"), 0,
               "  far: {backend: nowhere, numerics: f32}\n  fed: {backend: cpu, numerics: f32, inputs: far}\n");
  const Verdict verdict = judge_text(text);
  CHECK(verdict.judgements[0].outcome == Outcome::held);
  CHECK(verdict.judgements[1].outcome == Outcome::untested);
  CHECK_THAT(verdict.judgements[1].reason, Contains("nowhere"));
  CHECK(verdict.judgements[2].outcome == Outcome::untested);
  CHECK_THAT(verdict.judgements[2].reason, Contains("far"));
}

TEST_CASE("a stage that a lane does not have is missing, not equal, on either side") {
  std::string text = contract_text(R"(
  - {id: JUDGED, claim: a, lane: bare, stage: "*", metric: rel_l2, at_most: 1}
  - {id: AGAINST, claim: a, lane: free, against: bare, stage: "*", metric: cosine_similarity, at_least: 0.5}
  - {id: FINITE, claim: a, lane: bare, stage: "moe_*", metric: nonfinite, equals: 0}
  - {id: FLIPS, claim: a, lane: free, against: bare, stage: moe_router_indices, metric: routing_flips, equals: 0}
  - {id: SUM, claim: a, lane: bare, stage: moe_router_probs, metric: router_sum_error, at_most: 1}
  - {id: WHOLE, claim: a, lane: free, stage: lm_head, metric: rel_l2, at_most: 1}
)");
  text.replace(text.find("falsifiers:"), 0, "  bare: {backend: bad, numerics: none}\n");
  const std::vector<std::string> plugins = {std::string(MOE_DIAG_BAD_PLUGINS) + "/null_lane", MOE_DIAG_PLUGINS};
  const Verdict verdict = judge_text(text, {}, {"{inject: nan, stage: attn_out, layer: 0, lane: bare}"}, plugins);
  REQUIRE(verdict.judgements.size() == 6);
  for (std::size_t f = 0; f < 5; ++f) {
    CHECK(verdict.judgements[f].outcome == Outcome::untested);
    CHECK_THAT(verdict.judgements[f].reason, Contains("lane has no"));
  }
  CHECK(verdict.judgements[5].outcome == Outcome::held);
  CHECK_THAT(verdict.failure, Contains("changed nothing"));
}

TEST_CASE("a NaN falsifies every kind of claim, and the JSON says so in a string") {
  const Verdict verdict = judge_text(contract_text(R"(
  - {id: COS, claim: a, lane: step, stage: attn_out, metric: cosine_similarity, at_least: 0.5}
  - {id: REL, claim: a, lane: step, stage: attn_out, metric: rel_l2, at_most: 1e9}
  - {id: MAX, claim: a, lane: step, stage: attn_out, metric: max_abs_diff, at_most: 1e9}
  - {id: MIS, claim: a, lane: step, stage: attn_out, metric: mismatch_fraction, rtol: 1e9, atol: 1e9, equals: 0}
  - {id: NON, claim: a, lane: step, stage: attn_out, metric: nonfinite, equals: 0}
)"),
                                     {}, {"{inject: nan, stage: attn_out, layer: 2, lane: step}"});
  CHECK(verdict.count(Outcome::falsified) == 5);
  const auto json = nlohmann::json::parse(json_report(verdict, "0"));
  CHECK(json["schema_version"] == 1);
  CHECK(json["falsifiers"][0]["worst"]["value"] == "nan");
  CHECK(json["first_divergence"]["layer"] == 2);
  CHECK(json["first_divergence"]["stage"] == "attn_out");
  CHECK(json["outcomes"]["falsified"] == 5);
}

TEST_CASE("selections that the model does not have are refused with what it has") {
  const auto refused = [](const std::string& falsifier) {
    RunOptions options;
    options.controls = true;
    try {
      judge_text(contract_text(falsifier), options);
    } catch (const Error& e) {
      CHECK(e.kind() == ErrorKind::usage);
      return std::string(e.what());
    }
    return std::string("accepted");
  };
  CHECK_THAT(refused("  - {id: A, claim: a, lane: free, stage: attn_out, layers: 99, metric: rel_l2, at_most: 1}\n"),
             Contains("test.yaml:") && Contains("99") && Contains("4"));
  CHECK_THAT(refused("  - {id: A, claim: a, lane: free, stage: attn_out, positions: 3, metric: rel_l2, at_most: 1}\n"),
             Contains("prompt 'short'"));
  CHECK_THAT(refused("  - {id: A, claim: a, lane: step, stage: attn_out, metric: rel_l2, at_most: 1, controls: "
                     "[{inject: nan, stage: attn_out, layer: 4}]}\n"),
             Contains("layer 4 is not there"));
}

TEST_CASE("on a routed lane the router's weights are compared under the experts it chose itself") {
  std::string text = contract_text(R"(
  - {id: WEIGHTS, claim: a, lane: routed, stage: moe_router_weights, layers: 1, metric: rel_l2, at_most: 1e-4}
)");
  text.replace(text.find("falsifiers:"), 0, "  routed: {backend: cpu, numerics: f32, routing: truth}\n");
  // The other end of the ranking: no expert in common.
  const Verdict verdict =
      judge_text(text, {}, {"{inject: scale, stage: moe_router_logits, layer: 1, factor: -1, lane: routed}"});
  CHECK(verdict.judgements[0].outcome == Outcome::untested);
  CHECK(verdict.judgements[0].skipped_experts == 9);
}

TEST_CASE("a NaN in an expert that only this lane chose is seen") {
  const Verdict verdict = judge_text(contract_text(R"(
  - {id: FINITE, claim: a, lane: free, stage: moe_expert_out, layers: 1, metric: nonfinite_beyond, equals: 0}
)"),
                                     {},
                                     {"{inject: wrong_expert, stage: moe_router_indices, layer: 1, lane: free}",
                                      "{inject: nan, stage: moe_expert_out, layer: 1, lane: free}"});
  CHECK(verdict.judgements[0].outcome == Outcome::falsified);
  CHECK(verdict.judgements[0].skipped_experts == 3);
}

TEST_CASE("a fault that changes nothing is not taken for a run that found nothing") {
  const std::string finite =
      "  - {id: F, claim: a, lane: free, stage: lm_head, positions: last, metric: nonfinite, equals: 0}\n";
  for (const std::string fault : {"{inject: nan, stage: final_norm, positions: 0, lane: free}",
                                  "{inject: wrong_expert, stage: moe_router_indices, layer: 0, lane: free}"}) {
    const std::string model = fault.find("nan") != std::string::npos
                                  ? "{synthetic: tiny, seed: 7}"
                                  : "{gguf: " + std::string(MOE_DIAG_SOURCE_DIR) + "/tests/golden/hf/all_experts.gguf}";
    INFO(fault);
    try {
      const Verdict verdict = judge_text(contract_text(finite, model, "[3, 14, 15]"), {}, {fault});
      CHECK_THAT(verdict.failure, Contains("changed nothing"));
      CHECK(verdict.failure_is_usage);
    } catch (const Error& e) {
      CHECK(e.kind() == ErrorKind::usage);
      CHECK_THAT(e.what(), Contains("no other expert"));
    }
  }
  CHECK_THROWS_WITH(judge_text(contract_text(finite), {}, {"{inject: nan, stage: attn_out, layer: 0, lane: step}"}),
                    Contains("does not run"));
}

TEST_CASE("a control is expected where its fault reaches first, not at what merely comes later") {
  const Verdict verdict = with_controls(R"(
  - id: REACH
    claim: a
    lane: free
    stage: [k_norm, attn_scores, lm_head]
    layers: 0
    metric: rel_l2
    at_most: 1e-3
    controls: [{inject: scale, stage: q_norm, layer: 0, factor: 2}]
)");
  CHECK(verdict.judgements[0].outcome == Outcome::held);
  REQUIRE(verdict.judgements[0].controls.size() == 1);
  CHECK_THAT(verdict.judgements[0].controls[0].message, Contains("attn_scores"));
}

TEST_CASE("the report's threshold is one that would have held") {
  const Verdict verdict = judge_text(contract_text(R"(
  - {id: REL, claim: a, lane: free, stage: lm_head, metric: rel_l2, at_most: 1e-9}
)"));
  const std::string report = console_report(verdict, false);
  const std::string marker = "over all of it: at_most ";
  const std::size_t at = report.find(marker);
  REQUIRE(at != std::string::npos);
  CHECK(std::stod(report.substr(at + marker.size())) >= verdict.judgements[0].worst()->worst.value);
  CHECK_THAT(report, Contains("position 0, lm_head"));
}

TEST_CASE("routing from the oracle makes the same experts comparable") {
  std::string text = contract_text(R"(
  - {id: VALUES, claim: a, lane: routed, stage: "moe_expert_*", metric: rel_l2, at_most: 1e-4}
)");
  text.replace(text.find("falsifiers:"), 0, "  routed: {backend: cpu, numerics: f32, routing: truth}\n");
  const Verdict verdict =
      judge_text(text, {}, {"{inject: wrong_expert, stage: moe_router_indices, layer: 1, lane: routed}"});
  CHECK(verdict.judgements[0].outcome == Outcome::held);
  CHECK(verdict.judgements[0].skipped_experts == 0);
}

}  // namespace moe_diag
