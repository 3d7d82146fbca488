// SPDX-License-Identifier: MIT
// The true stories in contracts/scenarios, each told to its end: what is seen, where it begins, and why.
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "tests/support/catch.hpp"
#include "tests/support/process.hpp"

namespace moe_diag {
namespace {

namespace fs = std::filesystem;
using Catch::Matchers::Contains;
using nlohmann::json;

const fs::path scenarios = fs::path(MOE_DIAG_SOURCE_DIR) / "contracts/scenarios";

// What the runner says of a scenario, to people and to programs.
struct Told {
  Finished run;
  json verdict;

  json falsifier(const std::string& id) const {
    for (const json& f : verdict["falsifiers"])
      if (f["id"] == id) return f;
    FAIL("there is no falsifier " << id);
    return {};
  }
  // The only divergence, on which all that is falsified depends.
  json divergence() const {
    INFO(run.out << run.err);
    REQUIRE(verdict["divergences"].size() == 1);
    return verdict["divergences"][0];
  }
};

Told tell(const std::string& name) {
  const TemporaryFolder folder;
  Told told;
  told.run = run_tool("run --controls " + quoted((scenarios / (name + ".yaml")).string()) + " --out " +
                      quoted(folder / "out"));
  INFO(told.run.out << told.run.err);
  CHECK(told.run.code == 1);
  CHECK(told.run.err.empty());
  told.verdict = json::parse(read_text(folder / "out/verdict.json"));
  // What holds has been shown to be able to fail, and what does not is explained.
  for (const json& f : told.verdict["falsifiers"]) {
    INFO(f["id"]);
    CHECK((f["outcome"] == "held" || f["outcome"] == "falsified"));
    if (f["outcome"] == "falsified") CHECK(f["explanation"]["cause"] != "unexplained");
    if (f["outcome"] == "held") CHECK(!f["controls"].empty());
    for (const json& control : f["controls"]) CHECK(control["tripped"] == true);
  }
  return told;
}

std::string text_of(const json& value) { return value.is_string() ? value.get<std::string>() : ""; }

}  // namespace

TEST_CASE("every scenario is told by a test") {
  std::set<std::string> found;
  for (const auto& entry : fs::directory_iterator(scenarios)) found.insert(entry.path().stem().string());
  CHECK(found == std::set<std::string>{"l6", "l47", "q8_k", "outlier"});
}

TEST_CASE("L6: all logits are NaN, and the tensor that is read as another type is named") {
  const Told told = tell("l6");
  const json logits = told.falsifier("LOGITS");
  CHECK(logits["failing"] == 3);
  CHECK(logits["worst"]["value"] == 512);
  CHECK(logits["explanation"]["cause"] == "nonfinite_inherited");
  CHECK(logits["explanation"]["divergence"] == 0);
  CHECK(told.falsifier("PER-LAYER")["explanation"]["divergence"] == 0);

  const json d = told.divergence();
  CHECK(d["layer"] == 6);
  CHECK(d["stage"] == "moe_expert_out");
  CHECK(d["cause"] == "wrong_type");
  CHECK(d["tensors"] == json{"blk.6.ffn_down_exps.weight (Q4_K)"});
  CHECK(d["text"] == "blk.6.ffn_down_exps.weight (Q4_K) read as Q6_K");
  CHECK(d["nonfinite"]["nan"] > 0);
  // The inputs are finite: no site of the lane comes before it.
  const json first = told.verdict["nonfinite_timeline"][0];
  CHECK(first["layer"] == 6);
  CHECK(first["stage"] == "moe_expert_out");
  CHECK_THAT(told.run.out, Contains("layer 6, moe_expert_out, expert 9\n") &&
                               Contains("wrong_type: blk.6.ffn_down_exps.weight (Q4_K) read as Q6_K;\n") &&
                               Contains("inputs finite, output not: ") &&
                               Contains("NaN or Inf inherited from layer 6, moe_expert_out, position 0"));
}

TEST_CASE("L47: experts change places, since the oracle's margin is smaller than the drift") {
  const Told told = tell("l47");
  const json layers = told.falsifier("PER-LAYER");
  CHECK(layers["failing"] == 1);
  CHECK(layers["worst"]["layer"] == 47);
  CHECK(layers["explanation"]["cause"] == "routing_drift");
  CHECK(told.falsifier("PER-LAYER-ROUTED")["outcome"] == "held");

  const json d = told.divergence();
  CHECK(d["layer"] == 47);
  CHECK(d["stage"] == "moe_router_indices");
  CHECK(d["cause"] == "routing_drift");
  CHECK(d["flip"]["margin"] < d["flip"]["logit_error"]);
  CHECK_THAT(text_of(d["text"]), Contains("the oracle's margin of 0.032 is smaller than the drift of 0.0726") &&
                                     Contains("with routing forced the layer agrees"));
  CHECK_THAT(told.run.out, Contains("layer 47, moe_router_indices, expert 10\n") &&
                               Contains("the oracle's margin of 0.032 is smaller than the drift of 0.0726") &&
                               Contains("with routing forced the layer agrees"));
}

TEST_CASE("Q8_K: the oracle decides that the reference is the inaccurate lane") {
  const Told told = tell("q8_k");
  const json products = told.falsifier("PRODUCTS");
  CHECK(products["worst"]["value"] > 1e-2);
  CHECK(told.falsifier("PRODUCTS-COSINE")["worst"]["value"] > 0.9999);
  CHECK(told.verdict["divergences"].empty());
  CHECK(products["explanation"]["cause"] == "reference");
  CHECK_THAT(text_of(products["explanation"]["text"]),
             Contains("the reference, lane reference, is the inaccurate side: 0.0109 off the oracle") &&
                 Contains("Q4_K: integer dot with Q8_K"));
  CHECK_THAT(told.run.out, Contains("reference: the reference, lane reference, is the inaccurate side"));
}

TEST_CASE("outlier: the cosine holds, the largest and the relative difference do not, and the value is named") {
  const Told told = tell("outlier");
  CHECK(told.falsifier("COSINE")["worst"]["value"] > 0.99);
  CHECK(told.verdict["first_divergence"]["falsifier"] == "LARGEST");
  CHECK(told.verdict["first_divergence"]["position"] == 1);
  CHECK(told.verdict["divergences"].empty());
  for (const std::string id : {"LARGEST", "RELATIVE"}) {
    const json f = told.falsifier(id);
    CHECK(f["failing"] == 1);
    CHECK(f["worst"]["position"] == 1);
    CHECK(f["explanation"]["cause"] == "reference");
  }
  CHECK(told.falsifier("LARGEST")["worst"]["value"] > 64);
  CHECK_THAT(told.run.out,
             Contains("position 1, layer 3, moe_ffn_out") &&
                 Contains("largest difference 64.2823 at element 110: -622.145142, expected -557.862793"));
}

}  // namespace moe_diag
