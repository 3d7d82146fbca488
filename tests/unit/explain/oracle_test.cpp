// SPDX-License-Identifier: MIT
// An oracle that is not finite itself: what is told, and what is not judged.
#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "core/contract/metric.hpp"
#include "core/report/github.hpp"
#include "core/report/junit.hpp"
#include "core/report/report.hpp"
#include "tests/support/bent_model.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/explained.hpp"
#include "tests/support/gate.hpp"
#include "tests/support/process.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag {
namespace {

using Catch::Matchers::Contains;
using Catch::Matchers::StartsWith;

const std::string three_claims =
    "  - {id: LOGITS, claim: the logits are the truth's, lane: free, stage: lm_head, metric: cosine_similarity, "
    "at_least: 0.9999}\n"
    "  - {id: FINITE, claim: every value is finite, lane: free, stage: all, metric: nonfinite, equals: 0}\n"
    "  - {id: BEYOND, claim: none that the truth does not have, lane: free, stage: all, metric: nonfinite_beyond, "
    "equals: 0}\n";

// A model file that something is wrong with.
struct BentFile {
  TemporaryFolder folder;
  std::string path = folder / "model.gguf";

  explicit BentFile(const std::string& quant = "q4_k_m") { write_synthetic({"tiny", 0, quant, 7}, path, {}); }
  const BentFile& with(const BlockPlace& place, Bad bad) const {
    bend(path, place, bad);
    return *this;
  }
  // In a block of every expert, so that those that run have it.
  const BentFile& in_all_experts(const std::string& tensor, Bad bad) const {
    for (int expert = 0; expert < 12; ++expert) bend(path, {tensor, expert, 3, 0}, bad);
    return *this;
  }
  std::string text(const std::string& claims = three_claims, const std::string& tokens = "[3, 141, 59]") const {
    return contract_text(claims, "{gguf: " + path + "}", tokens);
  }
};

// What the first divergence is, if it is the oracle's.
Divergence oracle_of(const Verdict& verdict) {
  REQUIRE_FALSE(verdict.diagnosis.divergences.empty());
  const Divergence& d = verdict.diagnosis.divergences.front();
  CHECK(told(verdict, d) == fmt::format("oracle_not_finite at {} of truth", text_of(d.site)));
  for (std::size_t i = 1; i < verdict.diagnosis.divergences.size(); ++i) {
    const Divergence& other = verdict.diagnosis.divergences[i];
    CHECK(other.cause == Cause::oracle_not_finite);  // of another prompt: no lane is accused
  }
  return d;
}

const Judgement& judgement_of(const Verdict& verdict, const std::string& id) {
  for (const Judgement& j : verdict.judgements)
    if (j.spec->id == id) return j;
  FAIL("no falsifier " << id);
  return verdict.judgements.front();
}

void check_three(const Verdict& verdict) {
  for (const std::string id : {"LOGITS", "BEYOND"}) {
    const Judgement& j = judgement_of(verdict, id);
    INFO(id << ": " << j.reason);
    CHECK(j.outcome == Outcome::untested);
    CHECK(j.not_judged.samples > 0);
    CHECK_THAT(j.reason, Contains("samples were not judged: the oracle 'truth'") && Contains("is not finite there"));
  }
  CHECK(judgement_of(verdict, "FINITE").outcome == Outcome::falsified);
  CHECK(explanation_of(verdict, "FINITE").cause == Cause::oracle_not_finite);
  check_all_explained(verdict);
}

}  // namespace

TEST_CASE("a NaN or Inf in the experts of a file, of every type, is told as the oracle's, with its blocks") {
  for (const std::string quant : {"f32", "f16", "bf16", "q8_0", "q4_k", "q6_k"})
    for (const Bad bad : {Bad::nan, Bad::inf, Bad::minus_inf}) {
      INFO(quant << ", kind " << static_cast<int>(bad));
      const BentFile file(quant);
      const Verdict verdict = judge(file.in_all_experts("blk.2.ffn_down_exps.weight", bad).text());
      check_three(verdict);
      const Divergence d = oracle_of(verdict);
      CHECK(text_of(d.site) == "layer 2, moe_expert_out");
      CHECK(d.position == 0);
      CHECK(d.expert >= 0);
      REQUIRE(d.tensors.size() == 1);
      CHECK_THAT(d.tensors[0], StartsWith("blk.2.ffn_down_exps.weight ("));
      REQUIRE(d.blocks.size() == 12);
      CHECK(d.blocks[5].expert == 5);
      CHECK((bad == Bad::nan ? d.blocks[5].nan : d.blocks[5].inf) == 1);
      CHECK(d.blocks[5].row == 3);
      CHECK_THAT(d.text, Contains("in the model, blk.2.ffn_down_exps.weight") && Contains("and 8 more experts of it"));
    }
}

TEST_CASE("the first site and the tensor are named, wherever in the file it is") {
  struct Expected {
    BlockPlace place;
    std::string site;
    int position;
  };
  const std::vector<Expected> all = {
      {{"token_embd.weight", 0, 141}, "embedding", 1},
      {{"blk.1.attn_norm.weight"}, "layer 1, attn_norm", 0},
      {{"blk.1.attn_q.weight", 0, 7}, "layer 1, qkv_matmul", 0},
      {{"blk.1.attn_k.weight", 0, 7}, "layer 1, qkv_matmul", 0},
      {{"blk.1.attn_v.weight", 0, 7}, "layer 1, qkv_matmul", 0},
      {{"blk.1.attn_q_norm.weight"}, "layer 1, q_norm", 0},
      {{"blk.1.attn_output.weight", 0, 3}, "layer 1, attn_out", 0},
      {{"blk.1.ffn_norm.weight"}, "layer 1, ffn_norm", 0},
      {{"blk.1.ffn_gate_inp.weight", 0, 4}, "layer 1, moe_router_logits", 0},
      {{"output_norm.weight"}, "final_norm", 0},
      {{"output.weight", 0, 9}, "lm_head", 0},
  };
  for (const Expected& e : all) {
    INFO(e.place.tensor);
    const BentFile file;
    const Verdict verdict = judge(file.with(e.place, Bad::nan).text());
    check_three(verdict);
    const Divergence d = oracle_of(verdict);
    CHECK(text_of(d.site) == e.site);
    CHECK(d.position == e.position);
    REQUIRE(d.tensors.size() == 1);
    CHECK_THAT(d.tensors[0], StartsWith(e.place.tensor));
    REQUIRE(d.blocks.size() == 1);
    CHECK(d.blocks[0].tensor == e.place.tensor);
    CHECK(d.blocks[0].row == e.place.row);
  }
}

TEST_CASE("no metric holds or fails beside a value of the oracle that is not finite") {
  std::string claims =
      "  - {id: FLIPS, claim: c, lane: free, stage: moe_router_indices, layers: 1, metric: routing_flips, equals: 0}\n"
      "  - {id: REAL, claim: c, lane: free, stage: moe_router_indices, layers: 1, metric: routing_real_flips, equals: "
      "0}\n";
  for (const std::string stage : {"moe_router_logits", "moe_router_probs", "lm_head", "moe_expert_weighted"})
    for (const MetricInfo& metric : metric_table) {
      if (metric.sides != Sides::two || !fits(metric.metric, qwen3moe.stages.find(stage))) continue;
      std::string claim =
          fmt::format("  - {{id: {}-{}, claim: c, lane: free, stage: {}, {}metric: {}, equals: {}", metric.name, stage,
                      stage, stage == "lm_head" ? "" : "layers: 1, ", metric.name, metric.larger_is_better ? 1 : 0);
      if (metric.metric == Metric::mismatch_fraction) claim += ", rtol: 0, atol: 0";
      if (metric.metric == Metric::noise_ratio) claim += ", floor: expected";
      claims += claim + "}\n";
    }
  const BentFile file;
  const Verdict verdict = judge(file.with({"blk.1.ffn_gate_inp.weight", 0, 4}, Bad::nan).text(claims));
  CHECK(verdict.judgements.size() > 30);
  for (const Judgement& j : verdict.judgements) {
    INFO(j.spec->id << ": " << j.reason);
    CHECK(j.outcome == Outcome::untested);
    CHECK(j.samples == 0);
    CHECK_THAT(j.reason, Contains("were not judged"));
  }
  CHECK(text_of(oracle_of(verdict).site) == "layer 1, moe_router_logits");
  CHECK_FALSE(verdict.diagnosis.made);
}

TEST_CASE("a fault planted in the oracle is told as the oracle's, and no lane is accused") {
  for (const std::string kind : {"nan", "inf"}) {
    const Verdict verdict =
        judge(contract_text(three_claims),
              {fmt::format("{{inject: {}, stage: moe_expert_out, layer: 2, positions: 1, lane: truth}}", kind)});
    const Divergence d = oracle_of(verdict);
    CHECK(text_of(d.site) == "layer 2, moe_expert_out");
    CHECK(d.position == 1);
    CHECK(d.blocks.empty());
    CHECK_THAT(d.text,
               Contains("the step's weights are finite") && Contains("a fault is planted") && Contains("lane truth"));
    CHECK(judgement_of(verdict, "FINITE").outcome == Outcome::held);  // the lane itself is
    CHECK(judgement_of(verdict, "LOGITS").outcome == Outcome::untested);
    CHECK(judgement_of(verdict, "LOGITS").samples == 1);
    CHECK(judgement_of(verdict, "LOGITS").not_judged.samples == 2);
    CHECK(judgement_of(verdict, "BEYOND").outcome == Outcome::untested);
  }
}

TEST_CASE("a lane that is not finite beside an oracle that is stays the lane's own") {
  const Verdict verdict =
      judge(contract_text(three_claims), {"{inject: nan, stage: moe_expert_out, layer: 2, lane: free}"});
  CHECK(told(verdict) == std::vector<std::string>{"nonfinite_origin at layer 2, moe_expert_out of free"});
  for (const Judgement& j : verdict.judgements) {
    CHECK(j.outcome == Outcome::falsified);
    CHECK(j.not_judged.samples == 0);
  }
}

TEST_CASE("what fails where the oracle is finite fails, and keeps its own cause") {
  const BentFile file;
  const Verdict verdict = judge(file.with({"token_embd.weight", 0, 141}, Bad::nan).text(),
                                {"{inject: zero, stage: moe_ffn_out, layer: 1, positions: 0, lane: free}"});
  const Judgement& logits = judgement_of(verdict, "LOGITS");
  CHECK(logits.outcome == Outcome::falsified);
  CHECK(logits.samples == 1);
  CHECK(logits.not_judged.samples == 2);
  REQUIRE(logits.remarks.size() == 1);
  CHECK_THAT(logits.remarks[0], StartsWith("2 of 3 samples were not judged"));
  CHECK(logits.explanation.cause == Cause::inherited);
  REQUIRE(verdict.diagnosis.divergences.size() == 2);
  CHECK(told(verdict, verdict.diagnosis.divergences[0]) == "oracle_not_finite at embedding of truth");
  CHECK(told(verdict, verdict.diagnosis.divergences[1]) == "zero at layer 1, moe_ffn_out of free");
  CHECK(logits.explanation.divergence == 1);
  CHECK(explanation_of(verdict, "FINITE").divergence == 0);
  const std::string report = console_report(verdict, false);
  CHECK_THAT(report,
             Contains("\nFirst divergence\n  where      prompt short, position 1, embedding\n  lane       truth\n"
                      "  cause      oracle_not_finite: "));
  CHECK(report.find("oracle_not_finite") < report.find("zero"));
}

TEST_CASE("an oracle that is not finite is told though nothing is falsified, and whether or not causes are asked for") {
  const BentFile file;
  file.in_all_experts("blk.2.ffn_down_exps.weight", Bad::nan);
  const std::string early =
      "  - {id: EARLY, claim: c, lane: free, stage: moe_ffn_out, layers: 0, metric: rel_l2, at_most: 1e-3}\n";
  const Verdict held = judge(file.text(early));
  CHECK(held.judgements[0].outcome == Outcome::held);
  oracle_of(held);
  CHECK_THAT(console_report(held, false), StartsWith("HELD: ") && Contains("First divergence\n"));
  const Verdict unexplained = judge(file.text(), {}, false);
  oracle_of(unexplained);
  CHECK(explanation_of(unexplained, "FINITE").cause == Cause::oracle_not_finite);
  // Nobody compares with the oracle: it runs only to explain.
  const Verdict alone =
      judge(file.text("  - {id: FINITE, claim: c, lane: free, stage: all, metric: nonfinite, equals: 0}\n"));
  oracle_of(alone);
  CHECK(explanation_of(alone, "FINITE").cause == Cause::oracle_not_finite);
  // The oracle itself is judged.
  const Verdict itself =
      judge(file.text("  - {id: FINITE, claim: c, lane: truth, stage: all, metric: nonfinite, equals: 0}\n"));
  oracle_of(itself);
  CHECK(explanation_of(itself, "FINITE").cause == Cause::oracle_not_finite);
}

TEST_CASE("each prompt has its own first site, and chunks do not change what is told") {
  const BentFile file;
  file.with({"token_embd.weight", 0, 141}, Bad::nan).in_all_experts("blk.2.ffn_up_exps.weight", Bad::inf);
  std::string text = file.text();
  const std::string prompts = "prompts: [{id: short, tokens: [3, 141, 59]}]";
  REQUIRE(text.find(prompts) != std::string::npos);
  for (const std::string chunk : {"", ", chunk: 2", ", chunk: 1"}) {
    INFO(chunk);
    std::string cut = text;
    cut.replace(
        cut.find(prompts), prompts.size(),
        fmt::format("prompts: [{{id: first, tokens: [3, 59, 7]{0}}}, {{id: second, tokens: [3, 7, 141]{0}}}]", chunk));
    const Verdict verdict = judge(cut);
    check_three(verdict);
    CHECK(told(verdict) == std::vector<std::string>{"oracle_not_finite at layer 2, moe_expert_up of truth",
                                                    "oracle_not_finite at embedding of truth"});
    CHECK(verdict.diagnosis.divergences[0].position == 0);
    CHECK(verdict.diagnosis.divergences[1].position == 2);
    const Nonfinite& n = verdict.diagnosis.divergences[1].nonfinite;
    CHECK(n.nan == n.values);  // one block of the row holds all its columns
  }
}

TEST_CASE("a NaN in an expert that never runs changes nothing in a run, and inspect --weights finds it") {
  const BentFile file;
  const Verdict before = judge(file.text());
  REQUIRE(before.count(Outcome::held) == 3);
  int idle = -1;
  for (const LayerCoverage& c : before.coverage)
    if (c.layer == 2)
      for (std::size_t e = 0; e < c.rows.size() && idle < 0; ++e)
        if (c.rows[e] == 0) idle = static_cast<int>(e);
  REQUIRE(idle >= 0);
  CHECK(run_tool("inspect --weights " + quoted(file.path)).code == 0);
  file.with({"blk.2.ffn_down_exps.weight", idle, 5, 0}, Bad::nan);
  const TemporaryFolder folder;
  const std::string contract = folder / "c.yaml";
  write_text(contract, file.text());
  const Finished run = run_tool("run " + quoted(contract) + " --out " + quoted(folder / "out"));
  CHECK(run.code == 0);
  CHECK_THAT(run.out, !Contains("oracle_not_finite"));
  const Finished shown = run_tool("inspect --weights " + quoted(file.path));
  CHECK(shown.code == 1);
  CHECK(shown.err.empty());
  CHECK_THAT(shown.out, Contains("weights     NOT SOUND: 1 of 51 tensors"));
  CHECK_THAT(shown.out, Contains("blk.2.ffn_down_exps.weight") && Contains("block 5: row 5, columns 0 to 255"));
  const Finished printed = run_tool("inspect --weights --json " + quoted(file.path));
  CHECK(printed.code == 1);
  const auto weights = nlohmann::json::parse(printed.out)["weights"];
  CHECK(weights["sound"] == false);
  REQUIRE(weights["unsound"].size() == 1);
  CHECK(weights["unsound"][0]["expert"] == idle);
  CHECK(weights["unsound"][0]["nan"] == 1);
  CHECK(weights["unsound"][0]["first"]["row"] == 5);
}

TEST_CASE("another lane that is compared with, or is the floor, is named when it is not finite") {
  const std::string claims =
      "  - {id: AGAINST, claim: c, lane: step, against: free, stage: attn_out, metric: rel_l2, at_most: 1}\n"
      "  - {id: FLOOR, claim: c, lane: step, stage: attn_out, metric: noise_ratio, floor: free, at_most: 1000}\n"
      "  - {id: FLIPS, claim: c, lane: step, against: free, stage: moe_router_indices, metric: routing_flips, equals: "
      "0}\n";
  const Verdict verdict =
      judge(contract_text(claims), {"{inject: nan, stage: attn_out, layer: 2, positions: 1, lane: free}"});
  for (const Judgement& j : verdict.judgements) {
    INFO(j.spec->id << ": " << j.reason);
    CHECK(j.outcome == Outcome::untested);
    CHECK(j.samples > 0);
    CHECK_THAT(j.reason, Contains("lane 'free', which they are compared with, is not finite there, first at prompt "
                                  "short, position 1, layer 2, "));
  }
  CHECK(verdict.diagnosis.divergences.empty());
}

TEST_CASE("every report tells of an oracle that is not finite, and exit codes are those of the claims") {
  const BentFile file;
  file.in_all_experts("blk.2.ffn_down_exps.weight", Bad::nan);
  const TemporaryFolder folder;
  const std::string contract = folder / "c.yaml", out = quoted(folder / "out");
  write_text(contract, file.text());
  const std::string run = "run " + quoted(contract) + " --out " + out + " --overwrite ";
  const Finished all = run_tool(run + "--junit " + quoted(folder / "j.xml"));
  CHECK(all.code == 1);
  CHECK_THAT(all.out, Contains("First divergence\n  where      prompt short, position 0, layer 2, moe_expert_out, "));
  CHECK_THAT(all.out, Contains("oracle_not_finite at layer 2, moe_expert_out, position 0: "));
  CHECK_THAT(read_text(folder / "j.xml"), Contains("name=\"oracle_not_finite\""));
  CHECK(json_breaches(folder / "out/verdict.json").empty());
  const auto verdict = read_json(folder / "out/verdict.json");
  CHECK(verdict["divergences"][0]["cause"] == "oracle_not_finite");
  CHECK(verdict["divergences"][0]["blocks"].size() == 12);
  CHECK(verdict["divergences"][0]["falsifiers"] == std::vector<std::string>{"FINITE"});
  CHECK(verdict["falsifiers"][0]["not_judged"]["samples"] == 3);
  CHECK(verdict["falsifiers"][0]["not_judged"]["stage"] == "lm_head");
  const Finished repro = run_tool("repro " + quoted(folder / "out/verdict.json") + " --out " + quoted(folder / "case"));
  CHECK(repro.code != 0);
  CHECK_THAT(repro.out + repro.err, Contains("the oracle itself is not finite where FINITE fails"));
  const Finished untested = run_tool(run + "--only LOGITS");
  CHECK(untested.code == 3);
  CHECK_THAT(untested.out, StartsWith("UNTESTED") && Contains("oracle_not_finite"));
  const Finished allowed = run_tool(run + "--only LOGITS --allow-untested LOGITS");
  CHECK(allowed.code == 0);
  CHECK_THAT(allowed.out, Contains("oracle_not_finite"));
  const std::vector<Verdict> verdicts{judge(file.text())};
  CHECK_THAT(github_annotations(verdicts, ""), Contains("the oracle is not finite"));
  CHECK_THAT(github_summary(verdicts), Contains("oracle"));
}

TEST_CASE("the sites of a claim about NaN show the errors of the row that is farthest off") {
  const Verdict verdict = judge(
      contract_text("  - {id: BEYOND, claim: c, lane: free, stage: moe_ffn_out, metric: nonfinite_beyond, equals: "
                    "0}\n  - {id: ERROR, claim: c, lane: free, stage: moe_ffn_out, metric: rel_l2, at_most: 1e9}\n"),
      {"{inject: scale, factor: 3, stage: moe_ffn_out, layer: 1, positions: 2, lane: free}"});
  REQUIRE(verdict.count(Outcome::held) == 2);
  for (std::size_t s = 0; s < verdict.judgements[0].sites.size(); ++s) {
    const Sample& shown = verdict.judgements[0].sites[s].worst;
    CHECK(shown.position == verdict.judgements[1].sites[s].worst.position);
    CHECK(shown.measure.rel_l2() == verdict.judgements[1].sites[s].worst.value);
  }
}

TEST_CASE("nonfinite counts the lane's experts one by one, whatever the oracle chose") {
  const std::string claims =
      "  - {id: ALL, claim: c, lane: free, stage: moe_expert_out, layers: 2, metric: nonfinite, equals: 0}\n"
      "  - {id: SOME, claim: c, lane: free, stage: moe_expert_out, layers: 2, experts: 0..=11, metric: nonfinite, "
      "equals: 0}\n";
  const Verdict verdict = judge(contract_text(claims, "{synthetic: tiny, seed: 7}", "[3]"),
                                {"{inject: nan, stage: moe_expert_out, layer: 2, index: 5, lane: free}"});
  CHECK(judgement_of(verdict, "ALL").samples == 3);
  CHECK(judgement_of(verdict, "ALL").failing >= 1);
  CHECK(judgement_of(verdict, "ALL").leading_failure()->first_failing.expert >= 0);
  CHECK(judgement_of(verdict, "SOME").outcome == Outcome::falsified);
}

}  // namespace moe_diag
