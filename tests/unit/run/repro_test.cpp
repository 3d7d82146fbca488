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
#include "core/run/repro.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/process.hpp"
#include "tests/support/small_contract.hpp"

namespace moe_diag {
namespace {

namespace fs = std::filesystem;
using Catch::Matchers::Contains;
using Kind = FaultSpec::Kind;
using Json = nlohmann::json;

const std::string claims = R"(
  - {id: ERROR, claim: steps are right, lane: step, stage: all, metric: rel_l2, at_most: 1e-5}
  - {id: ROUTING, claim: routing is right, lane: step, stage: moe_router_indices, metric: routing_flips, equals: 0}
  - {id: FREE, claim: the logits are right, lane: free, stage: lm_head, metric: rel_l2, at_most: 1e-4}
)";

// Passes of 3 and 2 positions, then of one each: what attention reads comes from several.
std::string text_of_contract(const std::string& falsifiers = claims,
                             const std::string& model = "{synthetic: tiny, seed: 7}",
                             const std::string& tokens = "[3, 14, 59, 26, 5], chunk: 3, generate: 2") {
  return contract_text(falsifiers, model, tokens);
}

// A contract in a folder, its verdict, and the case that is made of it.
class Round {
 public:
  explicit Round(const std::string& text = text_of_contract()) { write_text(path(), text); }

  std::string path() const { return folder_ / "c.yaml"; }
  std::string verdict() const { return folder_ / "verdict.json"; }
  std::string place() const { return folder_ / "case"; }
  std::string file(std::string_view name) const { return place() + "/" + std::string(name); }

  Verdict run(const std::vector<std::string>& faults, const std::vector<Override>& overrides = {}) {
    contract_ = read_contract(path(), overrides);
    RunOptions options;
    options.models = &models();
    for (const std::string& fault : faults) options.inject.push_back(parse_fault(fault, contract_));
    Verdict verdict = run_contract(contract_, host(), options);
    write_text(this->verdict(), json_report(verdict, "test"));
    return verdict;
  }

  Repro repro(const std::string& falsifier = "", bool overwrite = false) const {
    ReproOptions options;
    options.falsifier = falsifier;
    options.out = place();
    options.overwrite = overwrite;
    options.run.models = &models();
    return reproduce(read_verdict(verdict()), host(), options);
  }
  // What it says when it refuses.
  std::string refusal(const std::string& falsifier = "", ErrorKind kind = ErrorKind::usage) const {
    try {
      repro(falsifier);
    } catch (const Error& e) {
      CHECK(e.kind() == kind);
      CHECK(left_over().empty());
      return e.what();
    }
    return "";
  }

  // The case's own verdict; the last contract run lives with this.
  Verdict run_case(const std::vector<Override>& overrides = {}, bool with_fault = true) {
    std::string text = read_text(file("contract.yaml"));
    const std::size_t planted = text.find("planted:\n"), end = text.find("falsifiers:\n");
    if (!with_fault && planted != std::string::npos) text.erase(planted, end - planted);
    cases_.push_back(parse_contract(text, file("contract.yaml"), overrides));
    return run_contract(cases_.back(), host(), {});
  }

  // Whatever lies about beside the case.
  std::vector<std::string> left_over() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder_.str()))
      if (entry.path().filename().string().find(".partial") != std::string::npos)
        names.push_back(entry.path().filename().string());
    return names;
  }

 private:
  static PluginHost& host() {
    static PluginHost host({MOE_DIAG_PLUGINS});
    return host;
  }
  static ModelCache& models() {
    static ModelCache models;
    return models;
  }

  TemporaryFolder folder_;
  Contract contract_;
  std::list<Contract> cases_;
};

std::string fault_at(Kind kind, Site site, const std::string& lane, const std::string& more = "") {
  const std::string layer = site.layer < 0 ? "" : fmt::format(", layer: {}", site.layer);
  const std::string type = kind == Kind::wrong_type && site.stage == Stage::moe_router_logits ? ", type: BF16" : "";
  return fmt::format("{{inject: {}, stage: {}{}{}{}, lane: {}}}", name_of(kind), name_of(site.stage), layer, type, more,
                     lane);
}

Site site_at(Stage stage, int layer) { return {stage, info(stage).scope == Scope::model ? -1 : layer}; }

const Judgement& judgement(const Verdict& verdict, const std::string& id) {
  for (const Judgement& j : verdict.judgements)
    if (j.spec->id == id) return j;
  FAIL("there is no falsifier " << id);
  throw std::logic_error(id);
}

std::string expected_id(Stage stage) { return stage == Stage::moe_router_indices ? "ROUTING" : "ERROR"; }

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
  CHECK(judgement(alone, id).first_failing()->site == site);
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
  for (const StageInfo& s : stage_table) {
    const std::vector<Kind> of_values{Kind::nan, Kind::inf, Kind::scale, Kind::zero, Kind::bitflip};
    for (const FaultInfo& fault : fault_table) {
      if (!fits(fault.kind, s.stage)) continue;
      // Of the faults that fit nearly everywhere, one a stage; the others wherever they fit.
      const bool common = std::count(of_values.begin(), of_values.end(), fault.kind) > 0;
      if (common && fault.kind != of_values[turn % of_values.size()]) continue;
      seen.insert(fault.kind);
      const Site site = site_at(s.stage, 2);
      const std::string at = turn % 2 == 0 ? ", positions: last" : "";
      check_round_trip(round, fault_at(fault.kind, site, "step", at), site, expected_id(s.stage));
    }
    ++turn;
  }
  CHECK(seen.size() == fault_table.size());
}

TEST_CASE("faults of one element, expert or position keep it in the case") {
  Round round;
  const auto check = [&](Kind kind, Stage stage, const std::string& more) {
    const Site site = site_at(stage, 1);
    check_round_trip(round, fault_at(kind, site, "step", more), site, expected_id(stage));
  };
  check(Kind::nan, Stage::lm_head, ", index: 300");
  check(Kind::bitflip, Stage::lm_head, ", index: 511, bit: 30, positions: 4");
  check(Kind::inf, Stage::embedding, ", index: 255, positions: [0, 3]");
  check(Kind::zero, Stage::moe_expert_up, ", expert: 3");
  check(Kind::zero, Stage::moe_expert_weighted, ", expert: 3");
  check(Kind::stale_kv, Stage::attn_scores, ", positions: 2");
  check(Kind::scale, Stage::attention, ", positions: 6");
  check(Kind::quantise_activations, Stage::lm_head, ", block: 32");
}

TEST_CASE("a case is small: it has what the failing position concerns, and no more") {
  Round round;
  round.run({fault_at(Kind::wrong_expert, {Stage::moe_expert_out, 2}, "step", ", positions: 3")});
  REQUIRE(round.repro().written);
  const std::string readme = read_text(round.file("README.txt"));
  CHECK_THAT(readme,
             Contains("position 3 of 7 of prompt short") && Contains("of the model's 12, which have new numbers"));
  const Verdict alone = round.run_case();
  CHECK(alone.model.experts <= 6);
  CHECK(alone.model.layers == 4);
  CHECK(alone.tensors.empty() == false);
  round.run({fault_at(Kind::nan, {Stage::lm_head, -1}, "step", ", index: 300")});
  REQUIRE(round.repro("", true).written);
  CHECK_THAT(read_text(round.file("README.txt")), Contains("of the model's 512 tokens") && Contains(" is 300"));
  CHECK(fs::file_size(round.file("case.gguf")) < 60'000);
}

TEST_CASE("a lane that runs freely: the case is the step at fault, not where the failure shows") {
  Round round;
  for (const Site site : {Site{Stage::attn_out, 1}, Site{Stage::moe_expert_gate, 0}, Site{Stage::attn_scores, 2}}) {
    INFO(name_of(site.stage));
    const Kind kind = site.stage == Stage::attn_scores ? Kind::stale_kv : Kind::transpose;
    round.run({fault_at(kind, site, "free")});
    const Repro made = round.repro("FREE", true);
    INFO(made.text);
    REQUIRE(made.written);
    const Verdict alone = round.run_case();
    CHECK(judgement(alone, "STEP").outcome == Outcome::falsified);
    CHECK(judgement(alone, "STEP").first_failing()->site == site);
    CHECK(judgement(round.run_case({}, false), "STEP").outcome == Outcome::held);
  }
}

TEST_CASE("a choice of experts that does not follow from the logits is a case of its own") {
  Round round(text_of_contract(
      "  - {id: REAL, claim: c, lane: free, stage: moe_router_indices, metric: routing_real_flips, equals: 0}\n"));
  round.run({fault_at(Kind::swap_tie, {Stage::moe_router_indices, 2}, "free")});
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
  round.run({fault_at(Kind::transpose, {Stage::moe_expert_up, 1}, "step"),
             fault_at(Kind::scale, {Stage::attn_out, 1}, "step")});
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
  round.run({fault_at(Kind::scale, {Stage::moe_ffn_out, 1}, "truth")});
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
  const std::string fault = fault_at(Kind::scale, {Stage::attn_out, 1}, "free");
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
    check_round_trip(round, file.fault, verdict.first_divergence()->first_failing()->site, file.id);
  }
}

TEST_CASE("a model or a contract that changed since is refused, one that is gone is absent") {
  const TemporaryFolder models;
  SyntheticSpec spec;
  spec.layers = 2;
  write_synthetic(spec, models / "m.gguf");
  Round round(text_of_contract(claims, "{gguf: \"" + models / "m.gguf" + "\"}"));
  round.run({fault_at(Kind::scale, {Stage::attn_out, 1}, "step")});
  CHECK(round.repro().written);
  fs::remove_all(round.place());
  spec.seed = 8;
  write_synthetic(spec, models / "m.gguf", {true, 0, {}});
  CHECK_THAT(read_text(round.verdict()), Contains("m.gguf"));
  // The cache holds the model as it was: a process of its own has none.
  const auto repro = [&] { return run_tool("repro " + quoted(round.verdict()) + " --out " + quoted(round.place())); };
  const Finished changed = repro();
  CHECK(changed.code == 2);
  CHECK_THAT(changed.err, Contains("is not the model of") && Contains("run the contract again"));
  fs::remove(models / "m.gguf");
  const Finished gone = repro();
  CHECK(gone.code == 3);
  CHECK_THAT(gone.err, Contains("nothing was written") && Contains("m.gguf"));
  write_text(round.path(), text_of_contract(claims) + "# changed\n");
  CHECK_THAT(round.refusal(), Contains("the contract has changed since") && Contains("run it again"));
  fs::remove(round.path());
  CHECK_THAT(round.refusal(), Contains("c.yaml") && Contains("no such file"));
  CHECK_FALSE(fs::exists(round.place()));
}

TEST_CASE("what cannot be reproduced is refused with the reason") {
  std::string text = text_of_contract(claims + "  - {id: SLOW, claim: c, lane: free, metric: seconds, at_most: 0}\n");
  Round round(text);
  round.run({});
  CHECK_THAT(round.refusal(), Contains("nothing in it is falsified at a step"));
  CHECK_THAT(round.refusal("SLOW"), Contains("SLOW speaks of whole passes"));
  CHECK_THAT(round.refusal("ERROR"), Contains("ERROR is held, not falsified"));
  CHECK_THAT(round.refusal("ERRO"), Contains("unknown falsifier 'ERRO', did you mean 'ERROR'?"));
}

TEST_CASE("overrides and faults of the command line are those of the case") {
  Round round;
  round.run({fault_at(Kind::scale, {Stage::attn_out, 1}, "step", ", factor: 3, positions: 1")},
            {{"lanes.step.threads", "1"}, {"falsifiers.ERROR.at_most", "0.5"}});
  REQUIRE(round.repro().written);
  const std::string text = read_text(round.file("contract.yaml"));
  CHECK_THAT(text, Contains("\"threads\": \"1\"") && Contains("at_most: 0.5") && Contains("factor: 3") &&
                       Contains("positions: 1"));
}

TEST_CASE("a place that is taken is left alone, unless it holds a case that may be replaced") {
  Round round;
  round.run({fault_at(Kind::scale, {Stage::attn_out, 1}, "step")});
  write_text(round.file("mine.txt"), "mine");
  CHECK_THAT(round.refusal(), Contains("is there already") && Contains("--overwrite"));
  CHECK_THROWS_WITH(round.repro("", true), Contains("is no case"));
  CHECK(read_text(round.file("mine.txt")) == "mine");
  fs::remove_all(round.place());
  REQUIRE(round.repro().written);
  REQUIRE(round.repro("", true).written);
  CHECK(round.left_over().empty());
  CHECK(round.run_case().count(Outcome::falsified) == 1);
}

TEST_CASE("verdicts that are cut or twisted are refused, and nothing else happens") {
  Round round;
  round.run({fault_at(Kind::scale, {Stage::moe_ffn_out, 1}, "free")});
  const std::string text = read_text(round.verdict());
  const TemporaryFolder folder;
  const auto refused = [&](const std::string& changed) {
    write_text(folder / "v.json", changed);
    try {
      read_verdict(folder / "v.json");
    } catch (const Error& e) {
      CHECK(e.kind() == ErrorKind::usage);
      return std::string(e.what());
    }
    return std::string();
  };
  for (std::size_t end = 0; end + 2 < text.size(); end += 1 + text.size() / 300)
    CHECK_FALSE(refused(text.substr(0, end)).empty());
  // Every value in the way of what is read, of every other type: read or refused, never worse.
  const Json whole = Json::parse(text);
  const Json flat = whole.flatten();
  std::size_t refusals = 0, tried = 0;
  for (const auto& [pointer, value] : flat.items()) {
    if (tried++ % 7 != 0) continue;
    for (const Json& other :
         {Json(nullptr), Json(-1), Json(1e300), Json("x"), Json::array(), Json::object(), Json(true)}) {
      Json twisted = whole;
      twisted[Json::json_pointer(pointer)] = other;
      refusals += !refused(twisted.dump()).empty();
    }
  }
  CHECK(refusals > 0);
  CHECK_THAT(refused("[]"), Contains("not a verdict"));
  CHECK_THAT(refused("{\"schema_version\": 2}"), Contains("\"schema_version\" is 2, expected 1"));
  CHECK_THAT(refused("{\"schema_version\": 1, \"verdicts\": []}"), Contains("verdicts of several contracts"));
  CHECK_THAT(refused(std::string(100, '[')), Contains("nested too deeply"));
  CHECK_THAT(refused("no json"), Contains("not JSON"));
}

// A verdict that says something else than what happens now.
TEST_CASE("a verdict that does not fit its contract is refused where it does not") {
  Round round;
  round.run({fault_at(Kind::scale, {Stage::moe_ffn_out, 1}, "step")});
  const Json whole = Json::parse(read_text(round.verdict()));
  const auto refused = [&](const std::string& pointer, const Json& value) {
    Json twisted = whole;
    twisted[Json::json_pointer("/falsifiers/0/first_failing" + pointer)] = value;
    write_text(round.verdict(), twisted.dump());
    return round.refusal();
  };
  CHECK_THAT(refused("/layer", 7), Contains("the model has no layer 7, moe_ffn_out"));
  CHECK_THAT(refused("/prompt", "long"), Contains("the contract has no prompt 'long'"));
  CHECK_THAT(refused("/position", 7), Contains("\"position\" is 7, the prompt 'short' has 7"));
  CHECK_THAT(refused("/stage", "moe"), Contains("there is no stage 'moe'"));
  CHECK_FALSE(fs::exists(round.place()));
}

// Every way in which a step and its values may not fit.
TEST_CASE("a step whose values do not fit is refused, with what is expected of them") {
  Round round;
  round.run({fault_at(Kind::scale, {Stage::moe_expert_out, 2}, "step", ", positions: 4")});
  REQUIRE(round.repro().written);
  const std::string text = read_text(round.file("contract.yaml"));
  const auto refused = [&](const std::string& part, const std::string& other) {
    std::string changed = text;
    const std::size_t at = changed.find(part);
    REQUIRE(at != std::string::npos);
    changed.replace(at, part.size(), other);
    try {
      const Contract contract = parse_contract(changed, round.file("contract.yaml"));
      PluginHost host({MOE_DIAG_PLUGINS});
      run_contract(contract, host, {});
    } catch (const Error& e) {
      CHECK(e.kind() == ErrorKind::usage);
      return std::string(e.what());
    }
    return std::string();
  };
  const std::string indices = ", moe_router_indices: inputs/moe_router_indices.npy";
  CHECK_THAT(refused(indices, ""), Contains("step.inputs: what the step reads is missing: moe_router_indices"));
  CHECK_THAT(refused(indices, indices + ", attn_norm: inputs/moe_expert_swiglu.npy"),
             Contains("step.inputs.attn_norm: is not of the step that gives layer 2, moe_expert_out"));
  CHECK_THAT(refused(indices, ", moe_router_indices: inputs/moe_expert_swiglu.npy"),
             Contains("its type is '<f4', expected '<i4': ids of experts"));
  CHECK_THAT(refused("inputs: {moe_expert_swiglu: inputs/", "inputs: {moe_expert_swiglu: expected/"),
             Contains("expected/moe_expert_swiglu.npy: there is no such file"));
  CHECK_THAT(refused("positions: 4", "positions: 3..=4"),
             Contains("step.inputs.moe_expert_swiglu: its shape is [1, 3, 256], expected [2, 3, 256]"));
  CHECK_THAT(refused("expected: {moe_expert_out", "expected: {moe_ffn_out"),
             Contains("step.expected.moe_ffn_out: is not of the step"));
  CHECK_THAT(refused("model: {gguf: case.gguf}", "model: {synthetic: tiny}"), Contains("is whole"));
  CHECK_THAT(refused(text.substr(text.find("step:"), text.find("planted:") - text.find("step:")), ""),
             Contains("unknown lane 'recorded'"));
  CHECK_THAT(refused("stage: moe_expert_out\n    layers: 2", "stage: moe_expert_up\n    layers: 2"),
             Contains("nothing of this is computed: the model is a part, which has layer 2, moe_expert_out alone"));
  const std::string ids = read_text(round.file("inputs/moe_router_indices.npy"));
  write_text(round.file("inputs/moe_router_indices.npy"), ids.substr(0, ids.size() - 4) + std::string("\x07\0\0\0", 4));
  CHECK_THAT(refused("positions: 4", "positions: 4"), Contains("it holds expert 7, the model has experts 0..6"));
  write_text(round.file("inputs/moe_router_indices.npy"), ids.substr(0, ids.size() - 4));
  CHECK_THAT(refused("positions: 4", "positions: 4"), Contains("announces 3 elements of 4 bytes, 8 bytes follow"));
}

TEST_CASE("a part of a model without its step is refused") {
  Round round;
  round.run({fault_at(Kind::scale, {Stage::attn_norm, 2}, "step")});
  REQUIRE(round.repro().written);
  Round other(text_of_contract(claims, "{gguf: \"" + round.file("case.gguf") + "\"}"));
  CHECK_THROWS_WITH(other.run({}),
                    Contains("is a part of a model, which has layer 2, attn_norm alone") && Contains("'step'"));
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
