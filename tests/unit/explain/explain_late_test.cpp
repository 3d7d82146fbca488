// SPDX-License-Identifier: MIT
// What fails at late positions is explained by all positions up to there, on what the oracle computed in the run. Where
// there is no memory to keep that in, by these alone, then by those before that are out of line, then by all.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/run/run.hpp"
#include "tests/support/explained.hpp"

namespace moe_diag {
namespace {

using Catch::Matchers::Contains;

const std::string twelve = "[5, 9, 26, 7, 1, 2, 8, 31, 40, 41, 42, 43]";

// A claim about the logits of the last position alone.
std::string late_claim(const std::string& lane = "free") {
  return "  - {id: LATE, claim: c, lane: " + lane +
         ", stage: lm_head, positions: last, metric: rel_l2, at_most: 1e-9}\n";
}

std::string with_prompts(std::string text, const std::vector<std::string>& tokens) {
  std::string prompts = "prompts:\n";
  for (std::size_t i = 0; i < tokens.size(); ++i) prompts += fmt::format("  - {{id: p{}, tokens: {}}}\n", i, tokens[i]);
  return text.replace(text.find("prompts:"), text.find("oracle:") - text.find("prompts:"), prompts);
}

using Memory = std::optional<std::uint64_t>;
const Memory enough, little = 2 << 20;  // the second for keys and values, not for all that the oracle computes

// How many passes were run to explain it.
struct Explained {
  Verdict verdict;
  std::int64_t passes = 0;
};
Explained explained(const std::string& text, int layers, Memory memory,
                    const std::vector<std::string>& plugins = {MOE_DIAG_PLUGINS}) {
  Explained result;
  RunOptions options;
  options.explain_memory = memory;
  options.progress = [&](const Progress& p) {
    if (p.what == "explaining") result.passes = p.total / layers;
  };
  result.verdict = judge_text(text, options, {}, plugins);
  return result;
}

std::vector<double> errors_of(const Curve& curve) {
  std::vector<double> errors;
  for (const CurvePoint& p : curve.points) errors.insert(errors.end(), {p.free_error, p.step_error, p.expected});
  std::replace_if(
      errors.begin(), errors.end(), [](double e) { return std::isnan(e); }, -1);
  return errors;
}

}  // namespace

TEST_CASE("a fault of a late position or a late pass is found there") {
  std::string text = contract_text(claims_about("free"));
  text.replace(text.find("prompts:"), text.find("oracle:") - text.find("prompts:"),
               "prompts:\n  - {id: b, tokens: [5, 9, 26, 7, 1, 2, 8, 31, 40, 41, 42, 43], chunk: 5, generate: 2}\n");
  for (const std::string fault : {"inject: scale, stage: moe_expert_gate, layer: 2, positions: 11",
                                  "inject: stale_kv, stage: attn_scores, layer: 1, positions: 12",
                                  "inject: scale, stage: attention, layer: 3, positions: 13",
                                  "inject: rope_theta, stage: k_post_rope, layer: 0, positions: 10"}) {
    INFO(fault);
    for (const Memory memory : {enough, little}) {
      const Verdict verdict = judge(text, {fmt::format("{{{}, lane: free}}", fault)}, true, memory);
      REQUIRE(verdict.failure.empty());
      REQUIRE(verdict.diagnosis.divergences.size() == 1);
      const Divergence& d = verdict.diagnosis.divergences[0];
      CHECK(d.position >= 10);
      CHECK(d.cause != Cause::plain_operator);
      check_all_explained(verdict);
    }
  }
}

// Without memory only the last positions are looked at. Lanes have the second prompt in their caches, and get the first
// one back.
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
      for (const Memory memory : {enough, little}) {
        const Verdict verdict = judge(text, {fmt::format("{{{}, lane: {}}}", c.fault, lane)}, true, memory);
        INFO(c.fault << ", lane " << lane);
        CHECK(verdict.failure.empty());
        const std::string divergence = fmt::format("{} at {} of {}", c.cause, c.site, lane);
        CHECK(told(verdict) == std::vector<std::string>{divergence});
        for (const Divergence& d : verdict.diagnosis.divergences) CHECK((d.position >= 8) == (memory == little));
        check_all_explained(verdict);
      }
    }
  }
}

// Without memory: the keys and values of the position are out of line, and it is looked at, too.
TEST_CASE("what is wrong before the positions that fail is found there") {
  const Memory memory = GENERATE(enough, little);
  const auto judged = [&](const std::string& claim, const std::string& fault) {
    return judge(contract_text("  - {id: C, claim: c, lane: free, positions: last, " + claim + "}\n",
                               "{synthetic: tiny, seed: 7}", twelve),
                 {"{" + fault + ", positions: 3, lane: free}"}, true, memory);
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

// It leaves the keys and values of a lane without the fault; those of the run come back.
TEST_CASE("a lane that ran by itself after the run is explained as it was in the run") {
  const std::string late =
      "  - {id: LATE, claim: c, lane: free, stage: moe_ffn_out, layers: 3, positions: last, metric: rel_l2, at_most: "
      "1e-5}\n";
  const std::string alone =
      "  - {id: SAME, claim: c, lane: free, stage: lm_head, metric: identical, to: rerun, equals: 1}\n";
  std::vector<std::vector<double>> curves;
  const Memory memory = GENERATE(enough, little);
  for (const std::string& claims : {late, late + alone}) {
    const Verdict verdict =
        judge(contract_text(claims, "{synthetic: tiny, seed: 7}", twelve),
              {"{inject: scale, factor: 3, stage: moe_expert_out, layer: 0, lane: free}"}, true, memory);
    CHECK(told(verdict) == std::vector<std::string>{"scale at layer 0, moe_expert_out of free"});
    curves.emplace_back();
    for (const Curve& curve : verdict.diagnosis.curves)
      for (const CurvePoint& point : curve.points) curves.back().push_back(point.free_error);
  }
  CHECK(curves[0].size() >= 4);
  CHECK(curves[0] == curves[1]);
}

// Without memory two positions are looked at, and as nothing is wrong there, all.
TEST_CASE("what drifts late is looked at whole") {
  const std::vector<std::string> tokens = {twelve, "[3, 141, 59, 26, 53, 58, 97, 93, 23, 84]",
                                           "[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]"};
  const std::string alone =
      "  - {id: SAME, claim: c, lane: free, stage: lm_head, metric: identical, to: rerun, equals: 1}\n";
  for (const std::string& claims : {late_claim(), late_claim() + alone})
    for (std::size_t count : {1u, 3u})
      for (const Memory memory : {enough, little}) {
        const std::string text = with_prompts(contract_text(claims), {tokens.begin(), tokens.begin() + count});
        const Explained run = explained(text, 4, memory);
        CHECK(run.passes == static_cast<std::int64_t>(memory == little ? 2 * count : count));
        CHECK(explanation_of(run.verdict, "LATE").cause == Cause::drift);
      }
}

// One of them makes more of what it reads than others do: no fault, but nothing says so before it was looked at.
TEST_CASE("a position that is out of line and right does not hide a fault behind it") {
  const std::string text =
      contract_text(late_claim(), "{synthetic: tiny, seed: 8, layers: 48}",
                    "[232, 379, 384, 129, 197, 44, 87, 140, 253, 214, 410, 31, 470, 499, 464, 399, 506, "
                    "196, 412, 91, 496, 239, 20, 273, 417, 485, 388, 116, 264, 99, 64, 395]");
  const Explained run = explained(text, 48, little);
  CHECK(run.passes == 3);
  CHECK(explanation_of(run.verdict, "LATE").cause == Cause::drift);
  for (const std::string positions : {"17", "20", "20..30"}) {
    const std::string fault = "{inject: scale, factor: 3, stage: k_post_rope, layer: 40, lane: free, positions: ";
    const Verdict verdict = judge(text, {fault + positions + "}"}, true, little);
    CHECK(told(verdict) == std::vector<std::string>{"scale at layer 40, k_post_rope of free"});
    CHECK(explanation_of(verdict, "LATE").cause == Cause::inherited);
  }
  // Both are out of line, and the first is told.
  const std::string at = "stage: k_post_rope, layer: 40, lane: free, positions: ";
  const Verdict both = judge(
      text, {"{inject: scale, factor: 1.01, " + at + "17}", "{inject: scale, factor: 3, " + at + "20}"}, true, little);
  CHECK(told(both).size() == 1);
  CHECK(both.diagnosis.divergences.at(0).position == 17);
}

TEST_CASE("a lane that does not show its cache is run again from the start") {
  std::string text = contract_text(late_claim("fickle"), "{synthetic: tiny, seed: 7}", twelve);
  text.insert(text.find("falsifiers:"), "  fickle: {backend: bad, numerics: odd}\n");
  const Explained run =
      explained(text, 4, little, {MOE_DIAG_PLUGINS, std::string(MOE_DIAG_BAD_PLUGINS) + "/fickle_lane"});
  CHECK(run.verdict.failure.empty());
  CHECK(run.passes > 0);
  CHECK_THAT(explanation_of(run.verdict, "LATE").text,
             Contains("no error is known to be expected of the numerics 'odd'"));
}

TEST_CASE("an old key is named by the rows that read it late") {
  const Memory memory = GENERATE(enough, little);
  for (const std::string position : {"5", "9"}) {
    const Verdict verdict = judge(
        contract_text(late_claim(), "{synthetic: tiny, seed: 7}", twelve),
        {"{inject: stale_kv, stage: attn_scores, layer: 1, lane: free, positions: " + position + "}"}, true, memory);
    CHECK(told(verdict) == std::vector<std::string>{"stale_kv at layer 1, attn_scores of free"});
    CHECK_THAT(verdict.diagnosis.divergences.at(0).text,
               Contains("the key of position " + position + " is that of the position before"));
  }
}

// Where errors are large, no position can be ten times as far off.
TEST_CASE("what is wrong in most positions of a coarse lane is not taken for drift") {
  std::string text = contract_text(
      "  - {id: LATE, claim: c, lane: coarse, stage: lm_head, positions: last, metric: rel_l2, at_most: 0.3}\n",
      "{synthetic: tiny, seed: 7, layers: 8}",
      "[387, 301, 259, 488, 322, 102, 212, 325, 40, 27, 10, 302, 327, 460, 400, 320, 408, 64, 65, 324, 466, 114, 256, "
      "220]");
  text.insert(text.find("falsifiers:"), "  coarse: {backend: cpu, numerics: q8_k}\n");
  CHECK(judge(text).count(Outcome::falsified) == 0);
  const Memory memory = GENERATE(enough, little);
  const Verdict verdict =
      judge(text, {"{inject: zero, stage: moe_ffn_out, layer: 2, positions: 0..21, lane: coarse}"}, true, memory);
  CHECK(explanation_of(verdict, "LATE").cause == Cause::inherited);
  REQUIRE_FALSE(verdict.diagnosis.divergences.empty());
  CHECK(told(verdict, verdict.diagnosis.divergences[0]) == "zero at layer 2, moe_ffn_out of coarse");
}

TEST_CASE("a wrong step behind the position that fails does not hide one before it") {
  const Memory memory = GENERATE(enough, little);
  const Verdict verdict =
      judge(contract_text(
                "  - {id: LATE, claim: c, lane: free, stage: lm_head, positions: 10, metric: rel_l2, at_most: 1e-5}\n",
                "{synthetic: tiny, seed: 7}", twelve),
            {"{inject: scale, factor: 3, stage: k_post_rope, layer: 1, positions: [3, 11], lane: free}"}, true, memory);
  CHECK(explanation_of(verdict, "LATE").cause == Cause::inherited);
  CHECK(verdict.diagnosis.divergences.at(0).position == 3);
}

TEST_CASE("an oracle that is fed itself is run again from the start") {
  std::string text = contract_text(
      "  - {id: LATE, claim: c, lane: free, against: other, stage: lm_head, positions: last, metric: rel_l2, at_most: "
      "1e-9}\n",
      "{synthetic: tiny, seed: 7}", twelve);
  text.replace(text.find("numerics: f64}"), 14, "numerics: f64, inputs: free}");
  text.insert(text.find("falsifiers:"), "  other: {backend: cpu, numerics: bf16}\n");
  CHECK(explained(text, 4, enough).verdict.failure.empty());
}

// All positions are looked at: a step that is slightly wrong where the claim fails is not all there is.
TEST_CASE("a small fault where the claim fails does not hide a large one before it") {
  const Verdict verdict =
      judge(contract_text(late_claim(), "{synthetic: tiny, seed: 7}", twelve),
            {"{inject: scale, factor: 1.00002, stage: attn_out, layer: 2, positions: 11, lane: free}",
             "{inject: scale, factor: 3, stage: k_post_rope, layer: 1, positions: 3, lane: free}"});
  CHECK(told(verdict) ==
        std::vector<std::string>{"scale at layer 1, k_post_rope of free", "scale at layer 2, attn_out of free"});
  CHECK(explanation_of(verdict, "LATE").divergence == 0);
}

// The run looked at the last row of the head only; the rows that are looked at again end before it.
TEST_CASE("a wrong head is found though the first rows that fail are not those whose logits were looked at") {
  const std::string early =
      "  - {id: EARLY, claim: c, lane: free, stage: moe_ffn_out, metric: rel_l2, at_most: 1e-4}\n";
  const Memory memory = GENERATE(enough, little);
  const Verdict verdict = judge(contract_text(early + late_claim(), "{synthetic: tiny, seed: 7}", twelve),
                                {"{inject: scale, factor: 3, stage: moe_expert_out, layer: 1, lane: free}",
                                 "{inject: scale, factor: 2, stage: lm_head, lane: free}"},
                                true, memory);
  CHECK(told(verdict) ==
        std::vector<std::string>{"scale at layer 1, moe_expert_out of free", "scale at lm_head of free"});
  CHECK(verdict.diagnosis.divergences.at(1).position == 11);
  const Verdict of_oracle = judge(contract_text(early + late_claim(), "{synthetic: tiny, seed: 7}", twelve),
                                  {"{inject: scale, factor: 3, stage: moe_expert_out, layer: 1, lane: free}",
                                   "{inject: scale, factor: 2, stage: lm_head, lane: truth}"},
                                  true, memory);
  CHECK(told(of_oracle) == told(verdict));
}

TEST_CASE("what is explained is the same whether the oracle is run again or not, faults of its own included") {
  for (const Case& c : cases)
    for (const std::string lane : {"free", "truth"}) {
      if (lane == "truth" && c.cause == "nonfinite_origin") continue;
      INFO(c.fault << ", lane " << lane);
      std::vector<Verdict> verdicts;
      for (const Memory memory : {enough, little})
        verdicts.push_back(
            judge(contract_text(claims_about("free")), {fmt::format("{{{}, lane: {}}}", c.fault, lane)}, true, memory));
      CHECK(told(verdicts[0]) == told(verdicts[1]));
      REQUIRE(verdicts[0].diagnosis.curves.size() == verdicts[1].diagnosis.curves.size());
      for (std::size_t i = 0; i < verdicts[0].diagnosis.curves.size(); ++i)
        CHECK(errors_of(verdicts[0].diagnosis.curves[i]) == errors_of(verdicts[1].diagnosis.curves[i]));
    }
}

TEST_CASE("memory that is enough for one prompt goes to the first that fails, and no other") {
  const std::vector<std::string> tokens = {"[3, 141, 59, 26, 53, 58, 97, 93, 23, 84, 6, 7]",
                                           "[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]", twelve};
  const std::string holds = "  - {id: FINITE, claim: c, lane: free, stage: all, metric: nonfinite, equals: 0}\n";
  const auto fails_in = [](const std::string& prompt) {
    return fmt::format(
        "  - {{id: {0}, claim: c, lane: free, prompts: {0}, stage: lm_head, positions: last, metric: rel_l2, at_most: "
        "1e-9}}\n",
        prompt);
  };
  const auto passes = [&](const std::string& claims, std::uint64_t memory) {
    return explained(with_prompts(contract_text(holds + claims), tokens), 4, memory).passes;
  };
  std::uint64_t one = *little;
  while (passes(fails_in("p2"), one) > 1) one += one / 8;
  REQUIRE(one > *little);
  CHECK(passes(fails_in("p1") + fails_in("p2"), one) == 2 + 2);
  CHECK(passes(fails_in("p1") + fails_in("p2"), 2 * one) == 2);
  // Nothing explains a claim about the oracle itself.
  const std::string of_oracle =
      "  - {id: O, claim: c, lane: truth, against: free, prompts: p0, stage: lm_head, positions: last, metric: rel_l2, "
      "at_most: 1e-12}\n";
  CHECK(passes(of_oracle + fails_in("p2"), one) == 1);
}

}  // namespace moe_diag
