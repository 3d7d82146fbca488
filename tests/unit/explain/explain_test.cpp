// SPDX-License-Identifier: MIT
// What is falsified is run again on the oracle's inputs, and each falsifier gets the cause that was planted.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "core/explain/causes.hpp"
#include "core/report/diagnosis_text.hpp"
#include "core/report/github.hpp"
#include "core/report/junit.hpp"
#include "core/report/report.hpp"
#include "core/verdict/controls.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/explained.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag {
namespace {

using Catch::Matchers::Contains;

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

TEST_CASE(
    "an infinity or NaN that arithmetic makes is no flipped bit, and a flipped bit is told with its place in the row") {
  const auto first = [](const std::string& fault) {
    const Verdict verdict = judge(contract_text(claims_about("step")), {fault});
    INFO(fault);
    REQUIRE(verdict.diagnosis.divergences.size() == 1);
    return verdict.diagnosis.divergences[0];
  };
  // At position 0 the only key has weight 1, one bit from infinity.
  const Divergence inf = first("{inject: inf, stage: attn_softmax, layer: 1, positions: 0, lane: step}");
  CHECK(inf.cause == Cause::nonfinite_origin);
  const Divergence nan = first("{inject: nan, stage: attn_softmax, layer: 1, positions: 0, lane: step}");
  CHECK(nan.cause == Cause::nonfinite_origin);
  const Divergence bit = first("{inject: bitflip, stage: qkv_matmul, layer: 1, index: 600, bit: 22, lane: step}");
  CHECK(bit.cause == Cause::bitflip);
  CHECK(bit.text == "bit 22 of element 600 is flipped");
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

TEST_CASE("the steps that are farthest off are looked into, others are called not tried") {
  std::vector<std::string> faults;
  for (int layer = 0; layer < 4; ++layer)
    for (const std::string stage : {"ffn_norm", "moe_ffn_out"})
      faults.push_back(fmt::format("{{inject: scale, factor: 3, stage: {}, layer: {}, lane: step}}", stage, layer));
  const Verdict verdict = judge(contract_text(claims_about("step")), faults);
  const std::vector<Divergence>& all = verdict.diagnosis.divergences;
  REQUIRE(all.size() == faults.size());
  for (std::size_t i = 0; i < all.size(); ++i) {
    INFO(i << ": " << told(verdict, all[i]));
    CHECK(all[i].cause == (i < 4 ? Cause::scale : Cause::not_tried));
    CHECK(all[i].explained == (i < 4));
  }
  CHECK(all[0].text == "multiplied by 3");
  CHECK_THAT(all[6].text, Contains(": layer 0, ffn_norm is scale: multiplied by 3"));
  const std::string console = console_report(verdict, true);
  CHECK_THAT(console, Contains("not_tried: ") && !Contains("nothing tried explains it"));
}

TEST_CASE("of many steps that are off, the worst is explained and leads, whatever comes before it") {
  // Beside small errors of all norms, one step of a late layer that is all wrong.
  for (const std::string lane : {"step", "free"}) {
    INFO(lane);
    std::vector<std::string> faults;
    for (int layer = 0; layer < 4; ++layer)
      for (const std::string stage : {"attn_norm", "ffn_norm", "moe_ffn_out", "attn_out"})
        faults.push_back(
            fmt::format("{{inject: scale, factor: 1.005, stage: {}, layer: {}, lane: {}}}", stage, layer, lane));
    faults.push_back("{inject: zero, stage: attention, layer: 2, lane: " + lane + "}");
    const Verdict verdict = judge(contract_text(claims_about(lane)), faults);
    const std::string& id = lane == "step" ? "ERROR" : "LOGITS";
    const Explanation& e = explanation_of(verdict, id);
    CHECK(e.cause == (lane == "step" ? Cause::zero : Cause::inherited));
    REQUIRE(e.divergence >= 0);
    const Divergence& d = verdict.diagnosis.divergences[static_cast<std::size_t>(e.divergence)];
    CHECK(told(verdict, d) == "zero at layer 2, attention of " + lane);
    for (const Divergence& other : verdict.diagnosis.divergences)
      CHECK((other.cause == Cause::scale || other.cause == Cause::not_tried || &other == &d));
    if (lane == "free") continue;
    CHECK(text_of(verdict.first_divergence()->leading_failure()->site) == "layer 2, attention");
    const std::string console = console_report(verdict, false);
    CHECK_THAT(console.substr(0, console.find("Other divergences")), Contains("layer 2, attention"));
  }
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
  sides.lane_error = verdict.judgements[0].leading_failure()->first_failing.measure.rel_l2();
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
  CHECK(std::count_if(curves.begin(), curves.end(), [](const Curve& c) {
          return c.stage == stages::post_ffn_residual && c.points.size() == 4;
        }) == 1);
  for (const Curve& curve : curves) {
    CHECK(curve.points[1].worst_step == stages::moe_expert_out);  // whatever the curve's own stage is
    CHECK_FALSE(curve.points[1].step_error <= 1e-2);              // NaN where values are not finite
    CHECK(curve.points[0].step_error < 1e-6);
    CHECK_THAT(curve_block(verdict, curve, 1), Contains("worst step") && Contains("moe_expert_out"));
  }
}

}  // namespace moe_diag
