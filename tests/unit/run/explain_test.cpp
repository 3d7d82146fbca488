// SPDX-License-Identifier: MIT
// What is falsified is run again on the oracle's inputs, and each falsifier gets the cause that was planted.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "core/report/github.hpp"
#include "core/report/junit.hpp"
#include "core/report/report.hpp"
#include "core/verdict/causes.hpp"
#include "core/verdict/controls.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/small_contract.hpp"

namespace moe_diag {
namespace {

using Catch::Matchers::Contains;

std::string claims_about(const std::string& lane) {
  return fmt::format(R"(
  - {{id: ERROR, claim: steps are right, lane: {0}, stage: all, metric: rel_l2, at_most: 1e-5}}
  - {{id: ROUTING, claim: routing is right, lane: {0}, stage: moe_router_indices, metric: routing_real_flips, equals: 0}}
  - {{id: LOGITS, claim: logits are right, lane: {0}, stage: lm_head, metric: cosine_similarity, at_least: 0.99999}}
)",
                     lane);
}

Verdict judge(const std::string& text, const std::vector<std::string>& faults = {}, bool explain = true) {
  static ModelCache models;
  RunOptions options;
  options.models = &models;
  options.explain = explain;
  return judge_text(text, options, faults);
}

const Explanation& explanation_of(const Verdict& verdict, const std::string& id) {
  for (const Judgement& j : verdict.judgements)
    if (j.spec->id == id) return j.explanation;
  FAIL("no falsifier " << id);
  return verdict.judgements.front().explanation;
}

std::string told(const Verdict& verdict, const Divergence& d) {
  return fmt::format("{} at {} of {}", name_of(d.cause), text_of(d.site),
                     verdict.contract->lanes[static_cast<std::size_t>(d.lane)].name);
}
std::vector<std::string> told(const Verdict& verdict) {
  std::vector<std::string> list;
  for (const Divergence& d : verdict.diagnosis.divergences) list.push_back(told(verdict, d));
  return list;
}

// Whatever is falsified has an explanation, which names what it says it does.
void check_all_explained(const Verdict& verdict) {
  for (const Judgement& j : verdict.judgements) {
    if (j.outcome != Outcome::falsified) continue;
    INFO(j.spec->id);
    const Explanation& e = j.explanation;
    const bool names_one = is_of_step(e.cause) || is_of_routing(e.cause) || e.cause == Cause::inherited ||
                           e.cause == Cause::nonfinite_inherited;
    CHECK((e.divergence >= 0) == names_one);
    CHECK(e.divergence < static_cast<int>(verdict.diagnosis.divergences.size()));
    if (e.cause == Cause::unexplained) CHECK_FALSE(e.text.empty());
  }
}

struct Case {
  std::string fault;  // as `--inject` takes it, without the lane
  std::string cause;
  std::string site;
};

const std::vector<Case> cases = {
    {"inject: scale, factor: 3, stage: ffn_norm, layer: 1", "scale", "layer 1, ffn_norm"},
    {"inject: zero, stage: moe_expert_swiglu, layer: 2", "zero", "layer 2, moe_expert_swiglu"},
    {"inject: nan, stage: moe_expert_out, layer: 2, positions: 1", "nonfinite_origin", "layer 2, moe_expert_out"},
    {"inject: inf, stage: embedding", "nonfinite_origin", "embedding"},
    {"inject: bitflip, bit: 30, stage: attn_out, layer: 3", "bitflip", "layer 3, attn_out"},
    {"inject: wrong_expert, stage: moe_expert_up, layer: 1", "wrong_tensor", "layer 1, moe_expert_up"},
    {"inject: wrong_expert, stage: moe_router_indices, layer: 1", "routing_real", "layer 1, moe_router_indices"},
    {"inject: drop_top_expert, stage: moe_ffn_out, layer: 0", "dropped_expert", "layer 0, moe_ffn_out"},
    {"inject: uniform_weights, stage: moe_router_weights, layer: 2", "uniform_weights", "layer 2, moe_router_weights"},
    {"inject: wrong_type, stage: moe_expert_out, layer: 1", "wrong_type", "layer 1, moe_expert_out"},
    {"inject: skip_norm, stage: attn_norm, layer: 2", "skipped", "layer 2, attn_norm"},
    {"inject: rope_theta, stage: q_post_rope, layer: 1", "rope_theta", "layer 1, q_post_rope"},
    {"inject: rope_interleaved, stage: k_post_rope, layer: 1", "permutation", "layer 1, k_post_rope"},
    {"inject: transpose, stage: attn_out, layer: 0", "transposed", "layer 0, attn_out"},
    {"inject: quantise_activations, stage: moe_expert_gate, layer: 2", "rounded_activations",
     "layer 2, moe_expert_gate"},
    {"inject: off_by_one_position, stage: q_post_rope, layer: 2", "shifted_position", "layer 2, q_post_rope"},
    {"inject: stale_kv, stage: attn_scores, layer: 1, positions: 1", "stale_kv", "layer 1, attn_scores"},
};

}  // namespace

TEST_CASE("a planted fault is the one divergence, with its cause and place, on a fed lane and on a free one") {
  for (const std::string lane : {"step", "free"})
    for (const Case& c : cases) {
      const Verdict verdict =
          judge(contract_text(claims_about(lane)), {fmt::format("{{{}, lane: {}}}", c.fault, lane)});
      INFO(c.fault << ", lane " << lane);
      CHECK(verdict.failure.empty());
      CHECK(told(verdict) == std::vector<std::string>{fmt::format("{} at {} of {}", c.cause, c.site, lane)});
      check_all_explained(verdict);
    }
}

TEST_CASE("what follows from a divergence is inherited, what comes by itself is another one") {
  const Verdict verdict = judge(contract_text(R"(
  - {id: NORM, claim: c, lane: free, stage: attn_norm, layers: 1, metric: rel_l2, at_most: 1e-5}
  - {id: LOGITS, claim: c, lane: free, stage: lm_head, metric: cosine_similarity, at_least: 0.99999}
  - {id: ROUTER, claim: c, lane: free, stage: moe_router_logits, layers: 3, metric: rel_l2, at_most: 1e-5}
)"),
                                {"{inject: scale, stage: attn_norm, layer: 1, lane: free}",
                                 "{inject: zero, stage: moe_router_logits, layer: 3, lane: free}"});
  REQUIRE(told(verdict) == std::vector<std::string>{"scale at layer 1, attn_norm of free",
                                                    "zero at layer 3, moe_router_logits of free"});
  CHECK(explanation_of(verdict, "NORM").cause == Cause::scale);
  CHECK(explanation_of(verdict, "NORM").divergence == 0);
  CHECK(explanation_of(verdict, "LOGITS").cause == Cause::inherited);
  CHECK(explanation_of(verdict, "LOGITS").divergence == 0);
  CHECK(explanation_of(verdict, "ROUTER").cause == Cause::zero);
  CHECK(explanation_of(verdict, "ROUTER").divergence == 1);
  CHECK(verdict.diagnosis.divergences[0].factor == Approx(2));
}

TEST_CASE("NaN and Inf are told apart, with position, element and expert, and followed over the sites") {
  const std::string claim = "  - {id: FINITE, claim: c, lane: free, stage: all, metric: nonfinite, equals: 0}\n";
  for (const std::string kind : {"nan", "inf"}) {
    const Verdict verdict =
        judge(contract_text(claim),
              {"{inject: " + kind + ", stage: moe_expert_gate, layer: 2, positions: 1, index: 5, lane: free}"});
    REQUIRE(verdict.diagnosis.divergences.size() == 1);
    const Divergence& d = verdict.diagnosis.divergences[0];
    CHECK(d.cause == Cause::nonfinite_origin);
    CHECK((kind == "nan" ? d.nonfinite.nan : d.nonfinite.inf) == 1);
    CHECK(d.nonfinite.count() == 1);
    CHECK(d.nonfinite.position == 1);
    CHECK(d.nonfinite.element == 5);
    CHECK(d.nonfinite.expert >= 0);
    const std::vector<NonfiniteSite>& timeline = verdict.diagnosis.nonfinite;
    REQUIRE(timeline.size() > 2);
    CHECK(text_of(timeline.front().site) == "layer 2, moe_expert_gate");
    CHECK(timeline.front().counts.count() == 1);
    CHECK(text_of(timeline.back().site) == "lm_head");
    for (std::size_t i = 1; i < timeline.size(); ++i) CHECK(timeline[i - 1].site < timeline[i].site);
  }
}

TEST_CASE("a run that holds has no divergence, and one that is not to be explained says so") {
  const Verdict held = judge(contract_text(claims_about("step")));
  CHECK(held.count(Outcome::falsified) == 0);
  CHECK(held.diagnosis.divergences.empty());
  CHECK_FALSE(held.diagnosis.made);
  CHECK(held.diagnosis.reason.empty());

  const Verdict without =
      judge(contract_text(claims_about("step")), {"{inject: scale, stage: ffn_norm, layer: 1, lane: step}"}, false);
  CHECK_FALSE(without.diagnosis.made);
  CHECK_THAT(explanation_of(without, "ERROR").text, Contains("--no-explain"));
}

TEST_CASE("as many steps are looked into as one pass may cost, the others are told to be like those") {
  std::vector<std::string> faults;
  for (int layer = 0; layer < 4; ++layer)
    for (const std::string stage : {"ffn_norm", "moe_ffn_out"})
      faults.push_back(fmt::format("{{inject: scale, factor: 3, stage: {}, layer: {}, lane: step}}", stage, layer));
  const Verdict verdict = judge(contract_text(claims_about("step")), faults);
  const std::vector<Divergence>& all = verdict.diagnosis.divergences;
  REQUIRE(all.size() == faults.size());
  for (const Divergence& d : all) CHECK(d.cause == Cause::scale);
  CHECK(all[0].text == "multiplied by 3");
  CHECK(all[6].text == "as at layer 0: multiplied by 3");
}

TEST_CASE("what no step explains is named for what it is: numerics, drift, a choice, the reference") {
  std::string text = contract_text(R"(
  - {id: TIGHT, claim: c, lane: step, stage: moe_ffn_out, metric: rel_l2, at_most: 1e-9}
  - {id: DRIFT, claim: c, lane: free, stage: lm_head, metric: rel_l2, at_most: 1e-9}
  - {id: FLIPS, claim: c, lane: coarse, stage: moe_router_indices, metric: routing_flips, equals: 0}
  - {id: AFTER, claim: c, lane: coarse, stage: moe_ffn_out, layers: 3, positions: 1, metric: rel_l2, at_most: 0.1}
  - {id: SAME, claim: c, lane: free, against: coarse, stage: moe_ffn_out, layers: 0, positions: 0, metric: rel_l2, at_most: 1e-3}
  - {id: OTHER, claim: c, lane: coarse, against: free, stage: moe_ffn_out, layers: 0, positions: 0, metric: rel_l2, at_most: 1e-3}
)",
                                   "{synthetic: tiny, seed: 7}", "[3, 141, 59, 26, 5, 35]");
  text.insert(text.find("falsifiers:"), "  coarse: {backend: cpu, numerics: q8_k}\n");
  const Verdict verdict = judge(text);
  check_all_explained(verdict);
  CHECK(explanation_of(verdict, "TIGHT").cause == Cause::numerics);
  CHECK_THAT(explanation_of(verdict, "TIGHT").text, Contains("asks for more than these numerics give"));
  CHECK(explanation_of(verdict, "DRIFT").cause == Cause::drift);
  CHECK_THAT(explanation_of(verdict, "DRIFT").text, Contains("add up to"));

  const Explanation flips = explanation_of(verdict, "FLIPS");
  REQUIRE(flips.cause == Cause::routing_drift);
  const Divergence& choice = verdict.diagnosis.divergences[static_cast<std::size_t>(flips.divergence)];
  REQUIRE(choice.flip);
  CHECK(choice.flip->margin < choice.flip->error);
  CHECK(text_of(choice.site) == "layer 0, moe_router_indices");
  CHECK(choice.position == 1);
  CHECK_THAT(choice.text, Contains("with routing forced the layer agrees"));
  CHECK(explanation_of(verdict, "AFTER").divergence == flips.divergence);

  const Explanation same = explanation_of(verdict, "SAME"), other = explanation_of(verdict, "OTHER");
  CHECK(same.cause == Cause::reference);
  CHECK_THAT(same.text, Contains("the reference, lane coarse, is the inaccurate side") && Contains("Q8_K"));
  CHECK(other.cause == Cause::drift);
  CHECK_THAT(other.text, Contains("lane coarse is the inaccurate side"));
}

TEST_CASE("the lane farther from the oracle is the one that is looked into") {
  const std::string claim =
      "  - {id: SAME, claim: c, lane: step, against: free, stage: moe_ffn_out, layers: 2, metric: rel_l2, at_most: "
      "1e-3}\n";
  const Verdict reference = judge(contract_text(claim), {"{inject: zero, stage: moe_expert_up, layer: 1, lane: free}"});
  CHECK(told(reference) == std::vector<std::string>{"zero at layer 1, moe_expert_up of free"});
  CHECK(explanation_of(reference, "SAME").cause == Cause::reference);
  CHECK(explanation_of(reference, "SAME").divergence == 0);
  const Verdict judged = judge(contract_text(claim), {"{inject: zero, stage: moe_ffn_out, layer: 2, lane: step}"});
  CHECK(told(judged) == std::vector<std::string>{"zero at layer 2, moe_ffn_out of step"});
  CHECK(explanation_of(judged, "SAME").cause == Cause::zero);
  CHECK_THAT(explanation_of(judged, "SAME").text, Contains("lane step is the inaccurate side"));
}

TEST_CASE("only the prompts that fail are run again") {
  std::string text = contract_text(
      "  - {id: A, claim: c, lane: free, stage: ffn_norm, layers: 0, prompts: a, metric: rel_l2, at_most: 1e-5}\n"
      "  - {id: B, claim: c, lane: free, stage: moe_ffn_out, prompts: b, metric: rel_l2, at_most: 1e-5}\n");
  text.replace(text.find("prompts:"), text.find("oracle:") - text.find("prompts:"),
               "prompts: [{id: a, tokens: [3, 141, 59]}, {id: b, tokens: [5, 9, 26, 7]}]\n");
  const Verdict verdict = judge(text, {"{inject: scale, stage: ffn_norm, layer: 1, positions: last, lane: free}"});
  REQUIRE(verdict.diagnosis.divergences.size() == 1);
  CHECK(verdict.diagnosis.divergences[0].prompt == 1);
  CHECK(verdict.diagnosis.divergences[0].position == 3);
}

TEST_CASE("a fault of a late position or a late pass is found there") {
  std::string text = contract_text(claims_about("free"));
  text.replace(text.find("prompts:"), text.find("oracle:") - text.find("prompts:"),
               "prompts:\n  - {id: b, tokens: [5, 9, 26, 7, 1, 2, 8, 31, 40, 41, 42, 43], chunk: 5, generate: 2}\n");
  for (const std::string fault : {"inject: scale, stage: moe_expert_gate, layer: 2, positions: 11",
                                  "inject: stale_kv, stage: attn_scores, layer: 1, positions: 12",
                                  "inject: scale, stage: attention, layer: 3, positions: 13",
                                  "inject: rope_theta, stage: k_post_rope, layer: 0, positions: 10"}) {
    INFO(fault);
    const Verdict verdict = judge(text, {fmt::format("{{{}, lane: free}}", fault)});
    REQUIRE(verdict.failure.empty());
    REQUIRE(verdict.diagnosis.divergences.size() == 1);
    const Divergence& d = verdict.diagnosis.divergences[0];
    CHECK(d.position >= 10);
    CHECK(d.cause != Cause::plain_operator);
    check_all_explained(verdict);
  }
}

// Only the last positions are looked at: the others lead up to them. The first prompt was run over by the second.
TEST_CASE("faults of all positions are found where claims are about the last of many") {
  for (const std::string lane : {"step", "free"}) {
    std::string claims = claims_about(lane);
    for (std::size_t at = 0; (at = claims.find("metric:", at)) != std::string::npos; at += 30)
      claims.insert(at, "positions: last, ");
    std::string text = contract_text(claims);
    text.replace(text.find("prompts:"), text.find("oracle:") - text.find("prompts:"),
                 "prompts:\n  - {id: a, tokens: [5, 9, 26, 7, 1, 2, 8, 31, 40, 41, 42, 43]}\n"
                 "  - {id: b, tokens: [3, 141, 59, 26, 53, 58, 97, 93, 23, 84], chunk: 4}\n");
    for (const Case& c : cases) {
      if (c.fault.find("positions") != std::string::npos) continue;
      const Verdict verdict = judge(text, {fmt::format("{{{}, lane: {}}}", c.fault, lane)});
      INFO(c.fault << ", lane " << lane);
      CHECK(verdict.failure.empty());
      const std::string divergence = fmt::format("{} at {} of {}", c.cause, c.site, lane);
      CHECK(told(verdict) == std::vector<std::string>{divergence});
      for (const Divergence& d : verdict.diagnosis.divergences) CHECK(d.position >= 8);
      check_all_explained(verdict);
    }
  }
}

TEST_CASE("what is wrong before the positions that fail is found in a second run over all of them") {
  const std::string tokens = "[5, 9, 26, 7, 1, 2, 8, 31, 40, 41, 42, 43]";
  const auto judged = [&](const std::string& claim, const std::string& fault) {
    return judge(contract_text("  - {id: C, claim: c, lane: free, positions: last, " + claim + "}\n",
                               "{synthetic: tiny, seed: 7}", tokens),
                 {"{" + fault + ", positions: 3, lane: free}"});
  };
  const Verdict scaled =
      judged("stage: lm_head, metric: rel_l2, at_most: 1e-5", "inject: scale, factor: 3, stage: k_post_rope, layer: 1");
  CHECK(told(scaled) == std::vector<std::string>{"scale at layer 1, k_post_rope of free"});
  CHECK(explanation_of(scaled, "C").cause == Cause::inherited);
  const Verdict lost =
      judged("stage: lm_head, metric: nonfinite, equals: 0", "inject: nan, stage: moe_expert_out, layer: 1");
  CHECK(told(lost) == std::vector<std::string>{"nonfinite_origin at layer 1, moe_expert_out of free"});
  CHECK(lost.diagnosis.divergences.at(0).position == 3);
  CHECK(explanation_of(lost, "C").cause == Cause::nonfinite_inherited);
}

// It leaves the keys and values of a lane without the fault.
TEST_CASE("a lane that ran by itself after the run is run again from the start") {
  const std::string late =
      "  - {id: LATE, claim: c, lane: free, stage: moe_ffn_out, layers: 3, positions: last, metric: rel_l2, at_most: "
      "1e-5}\n";
  const std::string alone =
      "  - {id: SAME, claim: c, lane: free, stage: lm_head, metric: identical, to: rerun, equals: 1}\n";
  std::vector<std::vector<double>> curves;
  for (const std::string& claims : {late, late + alone}) {
    const Verdict verdict =
        judge(contract_text(claims, "{synthetic: tiny, seed: 7}", "[5, 9, 26, 7, 1, 2, 8, 31, 40, 41, 42, 43]"),
              {"{inject: scale, factor: 3, stage: moe_expert_out, layer: 0, lane: free}"});
    CHECK(told(verdict) == std::vector<std::string>{"scale at layer 0, moe_expert_out of free"});
    curves.emplace_back();
    for (const Curve& curve : verdict.diagnosis.curves)
      for (const CurvePoint& point : curve.points) curves.back().push_back(point.free_error);
  }
  CHECK(curves[0].size() >= 4);
  CHECK(curves[0] == curves[1]);
}

TEST_CASE("a falsifier that cannot be explained says why") {
  const std::string claim =
      "  - {id: OUT, claim: c, lane: free, stage: lm_head, metric: rel_l2, at_most: 1e-9, against: step}\n";
  std::string without = contract_text(claim);
  without.replace(without.find("oracle: truth\n"), 14, "");
  CHECK_THAT(explanation_of(judge(without), "OUT").text, Contains("has no oracle"));

  std::string coarse = contract_text(claim);
  coarse.replace(coarse.find("oracle: truth"), 13, "oracle: step");
  CHECK_THAT(explanation_of(judge(coarse), "OUT").text, Contains("computes in f32"));

  const Verdict timed = judge(contract_text(
      "  - {id: SLOW, claim: c, lane: free, metric: seconds, repeat: 1, at_most: 1e-12}\n"
      "  - {id: SUM, claim: c, lane: truth, stage: moe_router_weights, metric: router_sum_error, at_most: 1e-30}\n"));
  CHECK_THAT(explanation_of(timed, "SLOW").text, Contains("of a whole pass"));
  CHECK_FALSE(timed.diagnosis.made);
  if (timed.judgements[1].outcome == Outcome::falsified)
    CHECK_THAT(explanation_of(timed, "SUM").text, Contains("the oracle itself"));

  std::string odd =
      contract_text("  - {id: ODD, claim: c, lane: odd, stage: lm_head, metric: rel_l2, at_most: 1e-9}\n");
  odd.replace(odd.find("  free:"), 0, "  odd: {backend: bad, numerics: odd, mood: steady}\n");
  const Verdict unknown =
      judge_text(odd, {}, {}, {std::string(MOE_DIAG_BAD_PLUGINS) + "/fickle_lane", MOE_DIAG_PLUGINS});
  CHECK_THAT(explanation_of(unknown, "ODD").text, Contains("no error is known to be expected of the numerics 'odd'"));
}

TEST_CASE("an interruption while causes are looked for keeps the outcomes, and says that there are none") {
  int layers = 0;
  RunOptions options;
  bool explaining = false;
  options.progress = [&](const Progress& p) { explaining = p.what == "explaining"; };
  options.interrupted = [&] { return explaining && ++layers > 2; };
  const Verdict verdict = judge_text(contract_text(claims_about("free")), options,
                                     {"{inject: scale, stage: moe_ffn_out, layer: 1, lane: free}"});
  CHECK_THAT(verdict.failure, Contains("causes were not named"));
  CHECK(verdict.judgements[0].outcome == Outcome::falsified);
  CHECK_FALSE(verdict.diagnosis.made);
  CHECK_THAT(explanation_of(verdict, "ERROR").text, Contains("interrupted"));
}

TEST_CASE("a rerun that shows other values is not taken for the run") {
  Verdict verdict = judge(contract_text(claims_about("free")), {"{inject: scale, stage: lm_head, lane: free}"});
  SideBySide sides;
  sides.falsifier = 0;
  sides.is_measured = true;
  sides.lane_error = verdict.judgements[0].first_failing()->first_failing.measure.rel_l2();
  CHECK(is_seen_again(sides, verdict));
  sides.lane_error *= 2;
  CHECK_FALSE(is_seen_again(sides, verdict));
  sides.lane_error = std::nan("");
  CHECK_FALSE(is_seen_again(sides, verdict));
}

TEST_CASE("experts that the prompts exercised are counted, and a claim about one that never ran is untested") {
  const auto about = [](const std::string& experts, const std::string& bound) {
    return judge(contract_text("  - {id: SOME, claim: c, lane: step, stage: moe_expert_out, layers: 2, experts: " +
                               experts + ", metric: rel_l2, " + bound + "}\n"));
  };
  const Verdict all = about("all", "at_most: 1e-3");
  REQUIRE(all.coverage.size() == 1);
  CHECK(all.coverage[0].layer == 2);
  std::vector<int> ran, never;
  std::int64_t rows = 0;
  for (int e = 0; e < 12; ++e) {
    const std::int64_t n = all.coverage[0].rows[static_cast<std::size_t>(e)];
    (n > 0 ? ran : never).push_back(e);
    rows += n;
  }
  CHECK(rows == 3 * 3);  // positions times experts a token
  CHECK(all.coverage[0].run() == static_cast<int>(ran.size()));
  REQUIRE_FALSE(never.empty());
  CHECK(all.judgements[0].outcome == Outcome::untested);
  CHECK_THAT(all.judgements[0].reason, Contains(fmt::format("expert {} at layer 2", never[0])));

  const Verdict held = about(fmt::format("[{}]", fmt::join(ran, ", ")), "at_most: 1e-3");
  CHECK(held.judgements[0].outcome == Outcome::held);
  CHECK(held.judgements[0].samples == 9);
  CHECK(about(fmt::format("{}", ran[0]), "at_most: 1e-3").judgements[0].samples ==
        all.coverage[0].rows[static_cast<std::size_t>(ran[0])]);
  CHECK(about(fmt::format("[{}, {}]", never[0], ran[0]), "at_most: 1e-30").judgements[0].outcome == Outcome::falsified);
  CHECK(about(fmt::format("{}", never[0]), "at_most: 1e-3").judgements[0].outcome == Outcome::untested);
  CHECK_THROWS_WITH(about("12", "at_most: 1e-3"), Contains("falsifier 'SOME': experts: "));
}

TEST_CASE("reports carry the cause") {
  const Verdict verdict =
      judge(contract_text(claims_about("free")), {"{inject: wrong_type, stage: moe_expert_out, layer: 1, lane: free}"});
  const std::string console = console_report(verdict, false);
  CHECK_THAT(console, Contains("cause      wrong_type: blk.1.ffn_down_exps.weight (Q4_K) read as Q6_K") &&
                          Contains("kernel     Q4_K: f32 dot") && Contains("Errors over the layers, lane free") &&
                          Contains("nherited from layer 1, moe_expert_out, position 0: wrong_type"));
  for (const std::string& text : {junit_report({&verdict, 1}, "1"), github_annotations({&verdict, 1}, "")})
    CHECK_THAT(text, Contains("read as Q6_K") && Contains("nherited from layer 1, moe_expert_out, position 0"));
  const auto curves = verdict.diagnosis.curves;
  REQUIRE_FALSE(curves.empty());
  CHECK(std::count_if(curves.begin(), curves.end(),
                      [](const Curve& c) { return c.stage == Stage::post_ffn_residual && c.points.size() == 4; }) == 1);
}

}  // namespace moe_diag
