// SPDX-License-Identifier: MIT
// A case that repro writes fails alone, as the run did; without its fault it holds. What is not a step is not written.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <list>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "core/api/output_file.hpp"
#include "core/contract/fault.hpp"
#include "core/report/report.hpp"
#include "core/repro/repro.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/process.hpp"
#include "tests/support/round.hpp"
#include "tests/support/small_contract.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag {
namespace {

namespace fs = std::filesystem;
using Catch::Matchers::Contains;
using Kind = FaultSpec::Kind;
using Json = nlohmann::json;

std::string expected_id(Stage stage) { return stage == stages::moe_router_indices ? "ROUTING" : "ERROR"; }

// With the fault in the fed lane: the case fails at its site with the run's values, and holds without it.
void check_round_trip(Round& round, const std::string& fault, Site site, const std::string& id) {
  INFO(fault);
  round.run({fault});
  const Repro made = round.repro(id, true);
  INFO(made.text);
  REQUIRE(made.written);
  CHECK(round.left_over().empty());
  CHECK_THAT(read_text(round.file("README.txt")), Contains("gives the same values as in the run"));
  const Verdict alone = round.run_case();
  CHECK(alone.failure.empty());
  CHECK(judgement(alone, id).outcome == Outcome::falsified);
  CHECK(judgement(alone, id).leading_failure()->site == site);
  CHECK(judgement(alone, "EXPECTED").outcome == Outcome::held);
  const Verdict right = round.run_case({}, false);
  CHECK(right.failure.empty());
  CHECK(judgement(right, id).outcome == Outcome::held);
  CHECK(judgement(right, "EXPECTED").outcome == Outcome::held);
}

}  // namespace

TEST_CASE("a case of every fault fails alone, with the values of the run, and holds without the fault") {
  Round round;
  std::set<Kind> seen;
  std::size_t turn = 0;
  for (const Stage s : qwen3moe.stages) {
    const std::vector<Kind> of_values{Kind::nan, Kind::inf, Kind::scale, Kind::zero, Kind::bitflip, Kind::f16_overflow};
    for (const FaultInfo& fault : fault_table) {
      if (!fits(fault.kind, s)) continue;
      if (fault.kind == Kind::wrong_scale && s == stages::moe_router_logits) continue;  // F32 has no scales
      // Of the faults that fit nearly everywhere, one a stage; the others wherever they fit.
      const bool common = std::count(of_values.begin(), of_values.end(), fault.kind) > 0;
      if (common && fault.kind != of_values[turn % of_values.size()]) continue;
      seen.insert(fault.kind);
      const Site site = site_at(s, 2);
      const std::string at = turn % 2 == 0 ? ", positions: last" : "";
      check_round_trip(round, fault_text(fault.kind, site, "step", at), site, expected_id(s));
    }
    ++turn;
  }
  CHECK(seen.size() == fault_table.size());
}

TEST_CASE("faults of one element, expert or position keep it in the case") {
  Round round;
  const auto check = [&](Kind kind, Stage stage, const std::string& more) {
    const Site site = site_at(stage, 1);
    check_round_trip(round, fault_text(kind, site, "step", more), site, expected_id(stage));
  };
  check(Kind::nan, stages::lm_head, ", index: 300");
  check(Kind::bitflip, stages::lm_head, ", index: 511, bit: 30, positions: 4");
  check(Kind::inf, stages::embedding, ", index: 255, positions: [0, 3]");
  check(Kind::zero, stages::moe_expert_up, ", expert: 3");
  check(Kind::zero, stages::moe_expert_weighted, ", expert: 3");
  check(Kind::stale_kv, stages::attn_scores, ", positions: 2");
  check(Kind::scale, stages::attention, ", positions: 6");
  check(Kind::quantise_activations, stages::lm_head, ", block: 32");
}

TEST_CASE("a case is small: it has what the failing position concerns, and no more") {
  Round round;
  round.run({fault_text(Kind::wrong_expert, {stages::moe_expert_out, 2}, "step", ", positions: 3")});
  REQUIRE(round.repro().written);
  const std::string readme = read_text(round.file("README.txt"));
  CHECK_THAT(readme,
             Contains("position 3 of 7 of prompt short") && Contains("of the model's 12, which have new numbers"));
  const Verdict alone = round.run_case();
  CHECK(alone.model.experts <= 6);
  CHECK(alone.model.layers == 4);
  CHECK(alone.tensors.empty() == false);
  round.run({fault_text(Kind::nan, {stages::lm_head, -1}, "step", ", index: 300")});
  REQUIRE(round.repro("", true).written);
  CHECK_THAT(read_text(round.file("README.txt")), Contains("of the model's 512 tokens") && Contains(" is 300"));
  CHECK(fs::file_size(round.file("case.gguf")) < 60'000);
}

TEST_CASE("a lane that runs freely: the case is the step at fault, not where the failure shows") {
  Round round;
  for (const Site site : {Site{stages::attn_out, 1}, Site{stages::moe_expert_gate, 0}, Site{stages::attn_scores, 2}}) {
    INFO(name_of(site.stage));
    const Kind kind = site.stage == stages::attn_scores ? Kind::stale_kv : Kind::transpose;
    round.run({fault_text(kind, site, "free")});
    const Repro made = round.repro("FREE", true);
    INFO(made.text);
    REQUIRE(made.written);
    const Verdict alone = round.run_case();
    CHECK(judgement(alone, "STEP").outcome == Outcome::falsified);
    CHECK(judgement(alone, "STEP").leading_failure()->site == site);
    CHECK(judgement(round.run_case({}, false), "STEP").outcome == Outcome::held);
  }
}

TEST_CASE("stages that another architecture has: the step at fault is the only one named, and its case fails alone") {
  for (const int seed : {7, 8}) {
    Round round(
        text_of_contract("  - {id: FREE, claim: c, lane: free, stage: lm_head, metric: rel_l2, at_most: 1e-4}\n",
                         fmt::format("{{synthetic: tiny-qwen2moe, seed: {}}}", seed)));
    for (const Stage stage : qwen2moe.stages) {
      if (qwen3moe.stages.find(name_of(stage)) && name_of(stage) != "qkv_matmul") continue;
      const Site site{stage, 2};
      INFO(name_of(stage) << ", seed " << seed);
      const Verdict verdict = round.run({fault_text(Kind::scale, site, "free")});
      REQUIRE(verdict.diagnosis.divergences.size() == 1);
      CHECK(verdict.diagnosis.divergences[0].site == site);
      // One value alone, in a pass of one row, is a factor as well as a bit.
      const bool is_one_value = name_of(stage) == "moe_shared_logit";
      CHECK(verdict.diagnosis.divergences[0].cause == (is_one_value ? Cause::plain_operator : Cause::scale));
      REQUIRE(round.repro("FREE", true).written);
      const Verdict alone = round.run_case();
      CHECK(judgement(alone, "STEP").outcome == Outcome::falsified);
      CHECK(judgement(alone, "EXPECTED").outcome == Outcome::held);
      CHECK(judgement(round.run_case({}, false), "STEP").outcome == Outcome::held);
    }
  }
}

TEST_CASE("a choice of experts that does not follow from the logits is a case of its own") {
  Round round(text_of_contract(
      "  - {id: REAL, claim: c, lane: free, stage: moe_router_indices, metric: routing_real_flips, equals: 0}\n"));
  round.run({fault_text(Kind::swap_tie, {stages::moe_router_indices, 2}, "free")});
  REQUIRE(round.repro().written);
  CHECK(judgement(round.run_case(), "STEP").outcome == Outcome::falsified);
  CHECK(judgement(round.run_case({}, false), "STEP").outcome == Outcome::held);
}

TEST_CASE("where numerics alone break a claim, the case holds in better ones") {
  std::string text = text_of_contract(
      "  - {id: COARSE, claim: c, lane: coarse, stage: moe_expert_out, layers: 2, metric: rel_l2, at_most: 1e-4}\n");
  text.insert(text.find("  step: "), "  coarse: {backend: cpu, numerics: q8_k, inputs: truth, threads: 1}\n");
  Round round(text);
  round.run({});
  REQUIRE(round.repro().written);
  CHECK(judgement(round.run_case(), "COARSE").outcome == Outcome::falsified);
  const Verdict better = round.run_case({{"lanes.coarse.numerics", "f32"}});
  CHECK(judgement(better, "COARSE").outcome == Outcome::held);
  CHECK(judgement(better, "EXPECTED").outcome == Outcome::held);
}

TEST_CASE("a lane held against another one, and a floor: the case has all three") {
  std::string text = text_of_contract(R"(
  - {id: PAIR, claim: c, lane: free, against: step, stage: moe_expert_up, layers: 1, metric: max_abs_diff, at_most: 1e-3}
  - {id: FLOOR, claim: c, lane: step, stage: attn_out, metric: noise_ratio, floor: free, at_most: 100}
)");
  Round round(text);
  round.run({fault_text(Kind::transpose, {stages::moe_expert_up, 1}, "step"),
             fault_text(Kind::scale, {stages::attn_out, 1}, "step")});
  for (const std::string id : {"PAIR", "FLOOR"}) {
    INFO(id);
    const Repro made = round.repro(id, true);
    INFO(made.text);
    REQUIRE(made.written);
    const Verdict alone = round.run_case();
    CHECK(alone.failure.empty());
    CHECK(alone.count(Outcome::falsified) >= 1);
    CHECK(judgement(alone, "EXPECTED").outcome == Outcome::held);
  }
}

TEST_CASE("the oracle's own fault is no truth of the case") {
  Round round(text_of_contract(
      "  - {id: PAIR, claim: c, lane: free, against: truth, stage: moe_ffn_out, metric: rel_l2, at_most: 1e-3}\n"));
  round.run({fault_text(Kind::scale, {stages::moe_ffn_out, 1}, "truth")});
  const Repro made = round.repro();
  INFO(made.text);
  REQUIRE(made.written);
  const Verdict alone = round.run_case();
  CHECK(judgement(alone, "PAIR").outcome == Outcome::falsified);
  CHECK(judgement(alone, "EXPECTED").outcome == Outcome::held);
  CHECK(judgement(alone, "EXPECTED").spec->lane == "truth2");
}

TEST_CASE("steps that are right alone are not written") {
  Round round(
      text_of_contract("  - {id: DRIFT, claim: c, lane: free, stage: lm_head, metric: rel_l2, at_most: 1e-8}\n"));
  round.run({});
  const Repro made = round.repro();
  CHECK_FALSE(made.written);
  CHECK_THAT(made.text, Contains("every step of lane 'free' is right alone: drift"));
  CHECK_FALSE(fs::exists(round.place()));
  CHECK(round.left_over().empty());
}

TEST_CASE("without causes the failing site is tried, and said to be right where it is") {
  Round round;
  const std::string fault = fault_text(Kind::scale, {stages::attn_out, 1}, "free");
  Contract contract = read_contract(round.path());
  RunOptions options;
  options.explain = false;
  options.inject = {parse_fault(fault, contract)};
  PluginHost host({MOE_DIAG_PLUGINS});
  write_text(round.verdict(), json_report(run_contract(contract, host, options), "test"));
  const Repro made = round.repro("FREE");
  CHECK_FALSE(made.written);
  CHECK_THAT(made.text, Contains("lm_head of lane 'free' is right when it is computed alone") &&
                            Contains("does not say which step is at fault") && Contains("--no-explain"));
  CHECK_FALSE(fs::exists(round.place()));
  CHECK(round.left_over().empty());
}

TEST_CASE("models in files: widths, tied heads, mixed types and any number of experts") {
  struct File {
    std::string name, fault, id;
  };
  const std::vector<File> files = {
      {"tied_bf16", "{inject: transpose, stage: lm_head, lane: step}", "ERROR"},
      {"tied_bf16", "{inject: nan, stage: embedding, lane: step, index: 1}", "ERROR"},
      {"odd_widths", "{inject: scale, stage: moe_expert_out, layer: 1, lane: step}", "ERROR"},
      {"mixed_types", "{inject: wrong_expert, stage: moe_expert_gate, layer: 1, lane: step}", "ERROR"},
      {"one_expert", "{inject: zero, stage: moe_expert_up, layer: 0, lane: step}", "ERROR"},
      {"all_experts", "{inject: drop_top_expert, stage: moe_ffn_out, layer: 0, lane: step}", "ERROR"},
  };
  for (const File& file : files) {
    const std::string model = fmt::format("{{gguf: \"{}/tests/golden/hf/{}.gguf\"}}", MOE_DIAG_SOURCE_DIR, file.name);
    const std::string only = "  - {id: ERROR, claim: c, lane: step, stage: all, metric: rel_l2, at_most: 1e-5}\n";
    Round round(text_of_contract(only, model, "[1, 2, 3]"));
    INFO(file.name);
    const Verdict verdict = round.run({file.fault});
    REQUIRE(verdict.first_divergence());
    check_round_trip(round, file.fault, verdict.first_divergence()->leading_failure()->site, file.id);
  }
}

TEST_CASE("repro on the command line: the case, its exit codes, and no half of it") {
  const TemporaryFolder folder;
  const std::string out = " --out " + quoted(folder / "out"), place = quoted(folder / "case");
  const std::string quickstart = quoted(MOE_DIAG_SOURCE_DIR "/contracts/quickstart.yaml");
  REQUIRE(run_tool("run " + quickstart + out + " --inject '{inject: nan, stage: moe_expert_out, layer: 2, lane: step}'")
              .code == 1);
  const Finished made = run_tool("repro " + quoted(folder / "out/verdict.json") + " --out " + place);
  CHECK(made.code == 0);
  CHECK(made.err.empty());
  CHECK_THAT(made.out, Contains("layer 2, moe_expert_out of lane step") && Contains("EXPECTED   held"));
  const Finished alone =
      run_tool("run " + quoted(folder / "case/contract.yaml") + " --out " + quoted(folder / "alone"));
  CHECK(alone.code == 1);
  CHECK_THAT(alone.out, Contains("layer 2, moe_expert_out"));
  CHECK(run_tool("check " + quoted(folder / "case/contract.yaml")).code == 0);
  CHECK(run_tool("plan " + quoted(folder / "case/contract.yaml")).code == 0);
  CHECK(run_tool("inspect " + quoted(folder / "case/case.gguf")).code == 0);
  const Finished again =
      run_tool("repro " + quoted(folder / "alone/verdict.json") + " --out " + quoted(folder / "smaller"));
  CHECK(again.code == 2);
  CHECK_THAT(again.err, Contains("one step alone already"));
  CHECK(run_tool("repro " + quoted(folder / "no.json") + " --out " + place).code == 2);
  CHECK(run_tool("repro " + quoted(folder / "out/verdict.json")).code == 2);
  CHECK(run_tool("repro " + quoted(folder / "out/verdict.json") + " --out ''").code == 2);
  CHECK(run_tool("repro " + quoted(folder / "out/verdict.json") + " --out " + place).code == 2);
  write_text(folder / "file", "text");
  CHECK(run_tool("repro " + quoted(folder / "out/verdict.json") + " --out " + quoted(folder / "file/case")).code == 4);
}

}  // namespace moe_diag
