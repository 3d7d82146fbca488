// SPDX-License-Identifier: MIT
// Metrics through the runner: what holds without a fault, what a planted one does to it, and what the reports say.
#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "core/contract/metric.hpp"
#include "core/model/synthetic.hpp"
#include "core/ops/predicted.hpp"
#include "core/report/report.hpp"
#include "core/verdict/judge.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/small_contract.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag {
namespace {

using Catch::Matchers::Contains;

Verdict with_controls(const std::string& text) {
  RunOptions options;
  options.controls = true;
  return judge_text(text, options);
}

// The lanes of small_contract.hpp and one that is routed by the oracle.
std::string routed_text(const std::string& falsifiers) {
  std::string text = contract_text(falsifiers);
  return text.insert(text.find("falsifiers:"), "  routed: {backend: cpu, numerics: f32, routing: truth}\n");
}

std::string refusal(const std::string& falsifiers) {
  try {
    judge_text(contract_text(falsifiers));
  } catch (const Error& e) {
    CHECK(e.kind() == ErrorKind::usage);
    return e.what();
  }
  return "accepted";
}

Model tiny() {
  SyntheticSpec spec;
  spec.preset = "tiny";
  spec.seed = 7;
  return Model::synthetic(spec);
}

const SiteResult& site_of(const Judgement& judgement, Site site) {
  for (const SiteResult& s : judgement.sites)
    if (s.site == site) return s;
  FAIL("not judged: " << name_of(site.stage) << " of layer " << site.layer);
  return judgement.sites.front();
}

}  // namespace

TEST_CASE("every new metric holds on lanes that are right, and each of its controls trips") {
  const Verdict verdict = with_controls(routed_text(R"(
  - {id: KL-FREE, claim: c, lane: free, stage: all, metric: kl, at_most: 1e-9, controls: [
      {inject: scale, stage: moe_router_logits, layer: 1, factor: 1.01},
      {inject: scale, stage: moe_router_probs, layer: 2, factor: 1.01},
      {inject: nan, stage: lm_head, index: 3}]}
  - {id: KL-STEP, claim: c, lane: step, stage: all, metric: kl, at_most: 1e-11, controls: [
      {inject: scale, stage: lm_head, factor: 1.001},
      {inject: nan, stage: moe_router_probs, layer: 3, positions: last}]}
  - {id: TOPK, claim: c, lane: free, stage: lm_head, metric: topk_overlap, at_least: 0.9, controls: [
      {inject: scale, stage: moe_ffn_out, layer: 0, factor: 100},
      {inject: scale, stage: lm_head, factor: -1}]}
  - {id: TOPK-ROUTER, claim: c, lane: step, stage: "moe_router_*", metric: topk_overlap, k: 3, equals: 1, controls: [
      {inject: scale, stage: moe_router_logits, layer: 0, factor: -1},
      {inject: nan, stage: moe_router_probs, layer: 1, index: 11}]}
  - {id: ULP, claim: c, lane: step, stage: moe_router_probs, metric: ulp, at_most: 64, controls: [
      {inject: scale, stage: moe_router_probs, layer: 2, factor: 1.0001},
      {inject: nan, stage: moe_router_probs, layer: 2}]}
  - {id: NOISE, claim: c, lane: step, stage: all, metric: noise_ratio, floor: expected, at_most: 20, controls: [
      {inject: scale, stage: attn_scores, layer: 1, factor: 1.001},
      {inject: wrong_expert, stage: moe_expert_up, layer: 2},
      {inject: nan, stage: final_norm}]}
  - {id: NOISE-LANE, claim: c, lane: routed, stage: post_ffn_residual, metric: noise_ratio, floor: free, at_most: 20,
     controls: [{inject: scale, stage: post_ffn_residual, layer: 2, factor: 1.001}]}
  - {id: REAL, claim: c, lane: free, stage: moe_router_indices, metric: routing_real_flips, equals: 0, controls: [
      {inject: wrong_expert, stage: moe_router_indices, layer: 1},
      {inject: wrong_expert, stage: moe_router_indices, layer: 3, positions: last},
      {inject: scale, stage: moe_router_probs, layer: 2, factor: -1}]}
  - {id: REAL-STEP, claim: c, lane: step, stage: moe_router_indices, metric: routing_real_flips, equals: 0,
     controls: [{inject: wrong_expert, stage: moe_router_indices, layer: 2}]}
  - {id: REAL-ROUTED, claim: c, lane: routed, stage: moe_router_indices, metric: routing_real_flips, at_most: 0,
     controls: [{inject: wrong_expert, stage: moe_router_indices, layer: 0}]}
)"));
  for (const Judgement& j : verdict.judgements) {
    INFO(j.spec->id << ' ' << j.reason << (j.worst() ? j.worst()->worst.value : -1));
    CHECK(j.outcome == Outcome::held);
    CHECK(j.samples > 0);
    CHECK(j.controls.size() == j.spec->controls.size());
    CHECK_FALSE(bound_that_holds(j));
  }
}

TEST_CASE("without a fault there is no real flip, whatever the seed, on any kind of lane") {
  const std::string text = routed_text(R"(
  - {id: FREE, claim: c, lane: free, stage: moe_router_indices, metric: routing_real_flips, equals: 0}
  - {id: STEP, claim: c, lane: step, stage: moe_router_indices, metric: routing_real_flips, equals: 0}
  - {id: ROUTED, claim: c, lane: routed, stage: moe_router_indices, metric: routing_real_flips, equals: 0}
  - {id: BACK, claim: c, lane: truth, against: free, stage: moe_router_indices, metric: routing_real_flips, equals: 0}
)");
  for (int seed = 0; seed < 20; ++seed) {
    std::string seeded = text;
    seeded.replace(seeded.find("seed: 7"), 7, fmt::format("seed: {}", seed));
    INFO("seed " << seed);
    CHECK(judge_text(seeded).count(Outcome::held) == 4);
  }
}

TEST_CASE("experts that follow from wrong logits are drift, counted and shown, and not real") {
  const Verdict verdict =
      judge_text(contract_text(R"(
  - {id: REAL, claim: c, lane: free, stage: moe_router_indices, metric: routing_real_flips, equals: 0}
  - {id: ALL, claim: c, lane: free, stage: moe_router_indices, metric: routing_flips, equals: 0}
)"),
                 {}, {"{inject: scale, stage: moe_router_logits, layer: 1, factor: -1, lane: free}"});
  const Judgement& real = verdict.judgements[0];
  CHECK(real.outcome == Outcome::held);
  CHECK(verdict.judgements[1].outcome == Outcome::falsified);
  CHECK(real.count(FlipKind::drift) >= 6);
  CHECK(real.count(FlipKind::real) == 0);
  // Of samples that count alike, the one with most flips is the worst.
  REQUIRE(real.worst()->worst.flips.size() == 3);
  const Flip& flip = real.worst()->worst.flips[0];
  CHECK(flip.margin > 0);
  CHECK(flip.margin <= flip.error);
  CHECK_THAT(console_report(verdict, false), Contains(text_of(flip)) && Contains("by drift, 0 really"));
}

TEST_CASE("a real flip is reported with its experts, margin and logit error") {
  const Verdict verdict = judge_text(contract_text(R"(
  - {id: REAL, claim: c, lane: free, stage: moe_router_indices, metric: routing_real_flips, equals: 0}
)"),
                                     {}, {"{inject: wrong_expert, stage: moe_router_indices, layer: 2, lane: free}"});
  const Judgement& real = verdict.judgements[0];
  CHECK(real.outcome == Outcome::falsified);
  CHECK(real.leading_failure()->site == Site{stages::moe_router_indices, 2});
  CHECK(real.count(FlipKind::real) == 3);
  CHECK_THAT(console_report(verdict, false),
             Contains("margin") && Contains(": real") && !Contains("that would have held"));
  const auto json = nlohmann::json::parse(json_report(verdict, "0"));
  const auto& judged = json["falsifiers"][0];
  CHECK(judged["flips"]["real"] == 3);
  CHECK(judged["flips"]["tie"] == 0);
  CHECK(judged["would_have_held"]["kind"] == "at_most");
  CHECK(judged["would_have_held"]["value"] == 1);
  const auto& flip = judged["worst"]["flips"][0];
  CHECK(flip["kind"] == "real");
  CHECK(flip["expert"] != flip["instead_of"]);
  CHECK(flip["margin"].get<double>() > flip["logit_error"].get<double>());
  CHECK(json["first_divergence"]["bound"]["kind"] == "equals");
}

TEST_CASE("the logits of both lanes are wanted wherever flips are looked at, and nowhere else") {
  const Contract contract = parse_contract(contract_text(R"(
  - {id: REAL, claim: c, lane: free, stage: moe_router_indices, layers: 1, metric: routing_real_flips, equals: 0}
  - {id: FLIPS, claim: c, lane: step, stage: moe_router_indices, layers: 2, metric: routing_flips, equals: 0}
  - {id: NOISE, claim: c, lane: step, stage: attn_out, metric: noise_ratio, floor: free, at_most: 1}
)"),
                                           "test.yaml");
  const Model model = tiny();
  PluginHost host({MOE_DIAG_PLUGINS});
  const Plan plan = make_plan(contract, model, false);
  Lanes lanes(contract, model, host, plan.request);
  lanes.open(needed_lanes(plan, lanes));
  const Judge judge(plan, lanes);
  const int truth = 0, free = 1, step = 2;
  CHECK(judge.wants(0, truth, {stages::moe_router_logits, 1}));
  CHECK(judge.wants(0, free, {stages::moe_router_logits, 1}));
  CHECK_FALSE(judge.wants(0, step, {stages::moe_router_logits, 1}));
  CHECK_FALSE(judge.wants(0, free, {stages::moe_router_logits, 2}));
  CHECK_FALSE(judge.wants(0, step, {stages::moe_router_logits, 2}));
  for (int lane : {truth, free, step}) CHECK(judge.wants(0, lane, {stages::attn_out, 3}));
}

TEST_CASE("noise in units of another lane's: what that lane did not compute is counted in the error of other rows") {
  const std::string falsifiers = R"(
  - {id: N, claim: c, lane: step, stage: "moe_expert_*", layers: 1, metric: noise_ratio, floor: free, at_most: 1e9}
)";
  const Verdict whole = judge_text(contract_text(falsifiers));
  CHECK(whole.judgements[0].samples == 3 * 3 * 5);
  CHECK(whole.judgements[0].without_floor == 0);
  const Verdict flipped = judge_text(contract_text(falsifiers), {},
                                     {"{inject: wrong_expert, stage: moe_router_indices, layer: 1, lane: free}"});
  CHECK(flipped.judgements[0].outcome == Outcome::held);
  CHECK(flipped.judgements[0].samples == 3 * 3 * 5);
  CHECK(flipped.judgements[0].without_floor == 3 * 5);
  CHECK_THAT(console_report(flipped, false), Contains("15 samples counted in the error of other rows"));
  CHECK(nlohmann::json::parse(json_report(flipped, "0"))["falsifiers"][0]["samples_without_floor"] == 15);
}

TEST_CASE("an error in units of itself is 1, of none at all in roundings of its type, and no error is 0") {
  std::string text = contract_text(R"(
  - {id: SAME, claim: c, lane: twin, stage: [moe_router_logits, moe_ffn_out], metric: noise_ratio, floor: free, equals: 1}
  - {id: NONE, claim: c, lane: free, stage: attn_out, metric: noise_ratio, floor: exact, at_most: 1}
  - {id: EXACT, claim: c, lane: exact, stage: attn_out, metric: noise_ratio, floor: free, equals: 0}
)",
                                   "{synthetic: tiny, seed: 7}", "[3]");  // a pass of one row
  text.insert(text.find("falsifiers:"),
              "  twin: {backend: cpu, numerics: f32, threads: 1}\n  exact: {backend: cpu, numerics: f64}\n");
  const Verdict verdict = judge_text(text);
  CHECK(verdict.judgements[0].outcome == Outcome::held);
  CHECK(verdict.judgements[1].outcome == Outcome::falsified);
  const Sample& none = verdict.judgements[1].worst()->worst;
  CHECK(none.value == none.measure.rel_l2() / rounding_of(DType::f32));
  CHECK(verdict.judgements[2].outcome == Outcome::held);
}

TEST_CASE("the expected floor is that of the step, the lane's numerics and the keys that the position attends to") {
  const Model model = tiny();
  const Program program = build_program(model);
  for (int position : {0, 1, 2}) {
    const Verdict verdict = judge_text(contract_text(fmt::format(R"(
  - {{id: R, claim: c, lane: step, stage: [attention, attn_out], positions: {0}, metric: rel_l2, at_most: 1}}
  - {{id: N, claim: c, lane: step, stage: [attention, attn_out], positions: {0}, metric: noise_ratio, floor: expected,
     at_most: 1e9}}
)",
                                                                 position)));
    REQUIRE(verdict.judgements[0].sites.size() == 8);
    for (std::size_t s = 0; s < 8; ++s) {
      const Sample &error = verdict.judgements[0].sites[s].worst, &ratio = verdict.judgements[1].sites[s].worst;
      const Step& step = *find_step(program, error.site);
      CHECK(ratio.value == error.value / *expected_error("f32", step, model.config(), position + 1));
    }
  }
}

TEST_CASE("without a floor a claim about noise is untested, by name") {
  std::string text = contract_text(R"(
  - {id: ABSENT, claim: c, lane: free, stage: attn_out, metric: noise_ratio, floor: far, at_most: 1}
  - {id: UNKNOWN, claim: c, lane: bare, stage: attn_out, metric: noise_ratio, floor: expected, at_most: 1}
  - {id: HERE, claim: c, lane: step, stage: attn_out, metric: noise_ratio, floor: expected, at_most: 20}
)");
  text.insert(text.find("falsifiers:"),
              "  far: {backend: nowhere, numerics: f32}\n  bare: {backend: bad, numerics: none}\n");
  const Verdict verdict =
      judge_text(text, {}, {}, {std::string(MOE_DIAG_BAD_PLUGINS) + "/null_lane", MOE_DIAG_PLUGINS, MOE_DIAG_NOTES});
  CHECK(verdict.judgements[0].outcome == Outcome::untested);
  CHECK_THAT(verdict.judgements[0].reason, Contains("lane 'far' is absent"));
  CHECK(verdict.judgements[1].outcome == Outcome::untested);
  CHECK_THAT(verdict.judgements[1].reason, Contains("'none'") && Contains("name a lane as the floor"));
  CHECK(verdict.judgements[2].outcome == Outcome::held);
}

TEST_CASE("the threshold in force is the first that matches: stages, then types, then the falsifier's own") {
  const Verdict verdict = judge_text(contract_text(R"(
  - id: A
    claim: c
    lane: step
    stage: [moe_expert_gate, moe_expert_out, moe_expert_swiglu, lm_head, qkv_matmul]
    metric: rel_l2
    at_most: 1
    per_stage: [{stage: lm_head, at_most: 2}, {stage: "moe_expert_g*", at_most: 3}]
    per_type: [{type: q6_k, at_most: 4}, {type: [Q4_K, F16], at_most: 5}]
)"));
  const Judgement& j = verdict.judgements[0];
  const auto bound = [&](Stage stage, int layer) { return site_of(j, {stage, layer}).worst.bound.value; };
  CHECK(bound(stages::lm_head, -1) == 2);
  CHECK(bound(stages::moe_expert_gate, 0) == 3);
  CHECK(bound(stages::moe_expert_swiglu, 1) == 1);
  // A Q4_K_M file mixes types by layer, and within attn_q, attn_k and attn_v.
  const Model model = tiny();
  const Program program = build_program(model);
  int mixed = 0;
  for (int layer = 0; layer < 4; ++layer) {
    const BlockType down = find_step(program, {stages::moe_expert_out, layer})->weights[0]->type;
    CHECK(bound(stages::moe_expert_out, layer) == (down == BlockType::q6_k ? 4 : 5));
    const bool v_is_q6 = find_step(program, {stages::qkv_matmul, layer})->weights[2]->type == BlockType::q6_k;
    CHECK(bound(stages::qkv_matmul, layer) == (v_is_q6 ? 4 : 5));
    mixed += v_is_q6;
  }
  CHECK(mixed > 0);
  CHECK(mixed < 4);
}

TEST_CASE("what is worst and what is claimed is told by the threshold in force") {
  const Verdict verdict = judge_text(contract_text(R"(
  - id: A
    claim: c
    lane: free
    stage: [attn_out, lm_head]
    layers: 0
    metric: rel_l2
    at_most: 1e-5
    per_stage: [{stage: lm_head, at_most: 1e-12}]
)"));
  const Judgement& j = verdict.judgements[0];
  CHECK(j.outcome == Outcome::falsified);
  CHECK(j.failing == 3);
  CHECK(j.worst()->site == Site{stages::lm_head, -1});
  const std::string report = console_report(verdict, false);
  CHECK_THAT(report, Contains("claimed at_most 1e-12") && Contains("held wherever at_most 1e-12 is claimed: at_most "));
  const auto json = nlohmann::json::parse(json_report(verdict, "0"));
  const auto& judged = json["falsifiers"][0];
  CHECK(judged["bound"]["value"] == 1e-5);
  CHECK(judged["worst"]["bound"]["value"] == 1e-12);
  CHECK(judged["sites"][0]["bound"]["value"] == 1e-5);
  CHECK(judged["sites"][1]["bound"]["value"] == 1e-12);
  CHECK(judged["would_have_held"]["value"].get<double>() >= judged["worst"]["value"].get<double>());
  CHECK(judged["would_have_held"]["value"].get<double>() < 1.1 * judged["worst"]["value"].get<double>());
}

TEST_CASE("the threshold that would have held is that of the samples under the same claim") {
  const Verdict verdict = judge_text(contract_text(R"(
  - {id: A, claim: c, lane: free, stage: [attn_norm, lm_head], layers: 0, metric: rel_l2, at_most: 1e-12,
     per_stage: [{stage: lm_head, at_most: 1e-5}]}
)"));
  const Judgement& j = verdict.judgements[0];
  const double norm = site_of(j, {stages::attn_norm, 0}).worst.value,
               head = site_of(j, {stages::lm_head, -1}).worst.value;
  REQUIRE(head > 1.1 * norm);
  REQUIRE(bound_that_holds(j));
  CHECK(bound_that_holds(j)->value >= norm);
  CHECK(bound_that_holds(j)->value < 1.1 * norm);
}

TEST_CASE("of two entries that match, the first is in force") {
  const Verdict verdict = judge_text(contract_text(R"(
  - {id: A, claim: c, lane: step, stage: [attn_out, lm_head], metric: rel_l2, at_most: 1,
     per_stage: [{stage: lm_head, at_most: 2}, {stage: all, at_most: 3}]}
  - {id: B, claim: c, lane: step, stage: [qkv_matmul, lm_head], metric: rel_l2, at_most: 1,
     per_type: [{type: Q6_K, at_most: 2}, {type: Q4_K, at_most: 3}]}
)"));
  CHECK(site_of(verdict.judgements[0], {stages::lm_head, -1}).worst.bound.value == 2);
  CHECK(site_of(verdict.judgements[0], {stages::attn_out, 0}).worst.bound.value == 3);
  CHECK(site_of(verdict.judgements[1], {stages::lm_head, -1}).worst.bound.value == 2);
}

TEST_CASE("an override can be what makes a claim hold") {
  const std::string own = "  - {id: A, claim: c, lane: step, stage: all, metric: rel_l2, at_most: 1e-20";
  CHECK(judge_text(contract_text(own + "}\n")).judgements[0].outcome == Outcome::falsified);
  CHECK(judge_text(contract_text(own + ", per_stage: [{stage: all, at_most: 1e-5}]}\n")).judgements[0].outcome ==
        Outcome::held);
}

TEST_CASE("worse is farther beyond the own threshold") {
  const auto sample = [](Bound bound, double value) {
    Sample s;
    s.bound = bound;
    s.value = value;
    return s;
  };
  using Kind = Bound::Kind;
  const Bound tight{Kind::at_most, 1e-6}, wide{Kind::at_most, 1e-2}, zero{Kind::equals, 0}, cosine{Kind::at_least, 0.9};
  CHECK(is_worse(sample(tight, 2e-6), sample(wide, 9e-3)));  // one fails
  CHECK(is_worse(sample(tight, 3e-6), sample(wide, 2e-2)));  // three times beyond, twice beyond
  CHECK(is_worse(sample(wide, 9e-3), sample(tight, 1e-7)));  // nearer to failing
  CHECK(is_worse(sample(wide, 2e-2), sample(wide, 1.9e-2)));
  CHECK(is_worse(sample(cosine, 0.8), sample(cosine, 0.85)));
  CHECK(is_worse(sample(zero, 2), sample(zero, -1)));
  CHECK(is_worse(sample(zero, 1), sample(tight, 1)));
  CHECK(is_worse(sample(wide, NAN), sample(zero, 1e300)));
  CHECK_FALSE(is_worse(sample(zero, 1e300), sample(wide, NAN)));
  CHECK_FALSE(is_worse(sample(wide, NAN), sample(wide, NAN)));
  CHECK_FALSE(is_worse(sample(wide, 1e-2), sample(wide, 1e-2)));
}

TEST_CASE("what the model does not have is refused at its place") {
  const std::string a = "  - {id: A, claim: c, lane: free, ";
  CHECK(
      refusal(a + "stage: attn_out, metric: rel_l2, at_most: 1, per_type: [{type: Q8_0, at_most: 2}]}\n") ==
      "test.yaml:11:91: falsifiers.A.per_type.0: no site of the falsifier reads a weight of type Q8_0: there is Q4_K");
  CHECK_THAT(refusal(a + "stage: attn_scores, metric: rel_l2, at_most: 1, per_type: [{type: F32, at_most: 2}]}\n"),
             Contains("there are none with a weight"));
  CHECK_THAT(refusal(a + "stage: lm_head, metric: rel_l2, at_most: 1, per_stage: [{stage: all, at_most: 3}], "
                         "per_type: [{type: Q6_K, at_most: 2}]}\n"),
             Contains("falsifiers.A.per_type.0: Q6_K is never in force: overrides before it match the same sites"));
  CHECK_THAT(refusal(a + "stage: [lm_head, moe_router_probs], metric: topk_overlap, k: 13, equals: 1}\n"),
             Contains("test.yaml:11:5: falsifier 'A': k is 13, a row of moe_router_probs has 12 values"));
  CHECK_THAT(refusal(a + "stage: lm_head, metric: topk_overlap, k: 513, equals: 1}\n"),
             Contains("lm_head has 512 values"));
  CHECK(refusal(a + "stage: lm_head, metric: topk_overlap, k: 512, equals: 1}\n") == "accepted");
}

TEST_CASE("a threshold that would have held is one, for every metric, and none is made up") {
  const std::string nan = "{inject: nan, stage: lm_head, lane: free}",
                    scale = "{inject: scale, stage: lm_head, factor: -3, lane: free}";
  for (const MetricInfo& metric : metric_table) {
    const bool is_of_nonfinite = metric.metric == Metric::nonfinite || metric.metric == Metric::nonfinite_beyond;
    if (!fits(metric.metric, stages::lm_head) || is_of_nonfinite || is_alone(metric.metric)) continue;
    INFO(metric.name);
    std::string keys = fmt::format("  - {{id: A, claim: c, lane: free, stage: lm_head, metric: {}, equals: {}",
                                   metric.name, metric.larger_is_better ? 1 : 0);
    if (metric.metric == Metric::mismatch_fraction) keys += ", rtol: 0, atol: 0";
    if (metric.metric == Metric::noise_ratio) keys += ", floor: expected";
    const auto judged = [&](const std::string& fault) { return judge_text(contract_text(keys + "}\n"), {}, {fault}); };
    const Verdict verdict = judged(scale);
    const Judgement& j = verdict.judgements[0];
    REQUIRE(j.outcome == Outcome::falsified);
    if (const auto bound = bound_that_holds(j)) {
      CHECK(objection(metric.metric, *bound).empty());
      for (const SiteResult& s : j.sites) CHECK(bound->holds(s.worst.value));
    } else {
      CHECK_THAT(json_report(verdict, "1"), Contains("\"would_have_held\": null"));
    }
    CHECK_FALSE(bound_that_holds(judged(nan).judgements[0]));
  }
}

}  // namespace moe_diag
