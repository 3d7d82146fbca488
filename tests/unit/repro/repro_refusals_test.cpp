// SPDX-License-Identifier: MIT
// What repro cannot make a case of, and cases that were changed by hand, are refused with what is wrong.
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

}  // namespace

TEST_CASE("a model or a contract that changed since is refused, one that is gone is absent") {
  const TemporaryFolder models;
  SyntheticSpec spec;
  spec.layers = 2;
  write_synthetic(spec, models / "m.gguf");
  Round round(text_of_contract(claims, "{gguf: \"" + models / "m.gguf" + "\"}"));
  round.run({fault_text(Kind::scale, {stages::attn_out, 1}, "step")});
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
  round.run({fault_text(Kind::scale, {stages::attn_out, 1}, "step", ", factor: 3, positions: 1")},
            {{"lanes.step.threads", "1"}, {"falsifiers.ERROR.at_most", "0.5"}});
  REQUIRE(round.repro().written);
  const std::string text = read_text(round.file("contract.yaml"));
  CHECK_THAT(text, Contains("\"threads\": \"1\"") && Contains("at_most: 0.5") && Contains("factor: 3") &&
                       Contains("positions: 1"));
}

TEST_CASE("a place that is taken is left alone, unless it holds a case that may be replaced") {
  Round round;
  round.run({fault_text(Kind::scale, {stages::attn_out, 1}, "step")});
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
  round.run({fault_text(Kind::scale, {stages::moe_ffn_out, 1}, "free")});
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
  round.run({fault_text(Kind::scale, {stages::moe_ffn_out, 1}, "step")});
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
  round.run({fault_text(Kind::scale, {stages::moe_expert_out, 2}, "step", ", positions: 4")});
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
  CHECK_THAT(refused("positions: 4", "positions: 4"), Contains("it holds expert 7, the model has experts 0 to 5"));
  write_text(round.file("inputs/moe_router_indices.npy"), ids.substr(0, ids.size() - 4));
  CHECK_THAT(refused("positions: 4", "positions: 4"), Contains("announces 3 elements of 4 bytes, 8 bytes follow"));
}

TEST_CASE("a part of a model without its step is refused") {
  Round round;
  round.run({fault_text(Kind::scale, {stages::attn_norm, 2}, "step")});
  REQUIRE(round.repro().written);
  Round other(text_of_contract(claims, "{gguf: \"" + round.file("case.gguf") + "\"}"));
  CHECK_THROWS_WITH(other.run({}),
                    Contains("is a part of a model, which has layer 2, attn_norm alone") && Contains("'step'"));
}

TEST_CASE("a claim about what was recorded is judged, and not taken for a step that can be run again") {
  Round round;
  round.run({fault_text(Kind::stale_kv, {stages::attn_scores, 2}, "step")});
  REQUIRE(round.repro().written);
  std::string text = read_text(round.file("contract.yaml"));
  const std::size_t expected = text.find("EXPECTED"), lane = text.find("\"truth\"", expected);
  for (const bool judged : {false, true}) {
    std::string changed = text;
    changed.replace(lane, 7, judged ? "\"recorded\"" : "\"step\"");
    if (judged) changed.replace(changed.find("against: \"recorded\"", expected), 19, "against: \"truth\"");
    if (judged) changed.replace(changed.find("at_most: 1e-12", expected), 14, "equals: 1");
    write_text(round.file("contract.yaml"), changed);
    const Verdict verdict = round.run_case();
    CHECK(verdict.failure.empty());
    CHECK(judgement(verdict, "EXPECTED").outcome == Outcome::falsified);
    CHECK(judgement(verdict, "EXPECTED").explanation.cause != Cause::drift);
  }
}

}  // namespace moe_diag
