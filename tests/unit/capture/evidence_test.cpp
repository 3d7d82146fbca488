// SPDX-License-Identifier: MIT
// Captures `when: falsified`: exactly what failed and what it was made from, and nothing when all holds.
#include <filesystem>
#include <set>

#include "tests/support/catch.hpp"
#include "tests/support/gate.hpp"

namespace moe_diag {
namespace {

namespace fs = std::filesystem;
using Catch::Matchers::Contains;

const std::string two_prompts = R"(
metadata: {id: evidence, version: 1.0.0, description: made by a test}
model: {synthetic: tiny, seed: 7}
prompts:
  - {id: short, tokens: [3, 141, 59]}
  - {id: other, tokens: [5, 9]}
oracle: truth
lanes:
  truth: {backend: cpu, numerics: f64}
  step: {backend: cpu, numerics: f32, inputs: truth}
  idle: {backend: cpu, numerics: f32}
capture:
  - {stages: "*", lanes: [truth, step], to: evidence, when: falsified}
  - {stages: lm_head, lanes: truth, positions: last, to: always}
sinks:
  always: {sink: npy, dir: always}
  evidence: {sink: npy, dir: evidence}
falsifiers:
  - {id: STEPS, claim: s, lane: step, stage: all, metric: rel_l2, at_most: 1e-5, prompts: short}
  - {id: OTHER, claim: o, lane: step, stage: lm_head, metric: rel_l2, at_most: 1e-5, prompts: other}
)";

std::set<std::string> files_below(const std::string& folder) {
  std::set<std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder))
    if (entry.path().extension() == ".npy") files.insert(fs::relative(entry.path(), folder).string());
  return files;
}

Finished run_evidence(const TemporaryFolder& folder, const std::string& more) {
  write_text(folder / "c.yaml", two_prompts);
  return run_tool("run " + quoted(folder / "c.yaml") + " --out " + quoted(folder / "out") + " " + more);
}

}  // namespace

TEST_CASE("evidence is the sites that fail and the inputs of their steps, of the prompts concerned") {
  const TemporaryFolder folder;
  const Finished run = run_evidence(folder, "--inject '{inject: scale, stage: attn_norm, layer: 2, lane: step}'");
  REQUIRE(run.code == 1);
  CHECK_THAT(run.out, Contains("sink       evidence: complete"));
  // attn_norm is made from the output of the layer before.
  CHECK(files_below(folder / "out/evidence") == std::set<std::string>{"short/truth/layer_02/attn_norm.npy",
                                                                      "short/step/layer_02/attn_norm.npy",
                                                                      "short/truth/layer_01/post_ffn_residual.npy",
                                                                      "short/step/layer_01/post_ffn_residual.npy"});
  CHECK(fs::exists(folder / "out/evidence/manifest.json"));
  CHECK(fs::exists(folder / "out/always/manifest.json"));
  // The evidence shows the fault: the judged lane's values are twice the oracle's.
  const Finished check = run_command(quoted(MOE_DIAG_PYTHON) + " -c " +
                                     quoted("import numpy as n; d='" + folder / "out/evidence/short/" +
                                            "'; a=n.load(d+'step/layer_02/attn_norm.npy'); "
                                            "b=n.load(d+'truth/layer_02/attn_norm.npy'); assert a.shape == (3, 256); "
                                            "assert n.allclose(a, 2*b, rtol=1e-4)"));
  CHECK(check.code == 0);
  CHECK(check.err.empty());
}

TEST_CASE("evidence keeps to the capture's selection") {
  const TemporaryFolder folder;
  const std::string fault = " --inject '{inject: scale, stage: moe_expert_gate, layer: 1, lane: step}'";
  REQUIRE(run_evidence(folder,
                       "--set capture.0.positions=last --set capture.0.lanes=step --set "
                       "'capture.0.stages=[ffn_norm, moe_expert_gate]'" +
                           fault)
              .code == 1);
  CHECK(files_below(folder / "out/evidence") ==
        std::set<std::string>{"short/step/layer_01/ffn_norm.npy", "short/step/layer_01/moe_expert_gate.npy"});
  const auto manifest = read_json(folder / "out/evidence/manifest.json");
  for (const auto& tensor : manifest["tensors"]) CHECK(tensor["positions"] == nlohmann::json({2}));
  // Nothing of what failed is selected by one capture: its sink is not even opened, another's is.
  REQUIRE(run_evidence(
              folder,
              "--overwrite --set sinks.none='{sink: npy, dir: none}' --set 'capture=[{stages: embedding, to: none, "
              "when: falsified}, {stages: all, to: evidence, when: falsified}, {stages: lm_head, to: always}]'" +
                  fault)
              .code == 1);
  CHECK_FALSE(fs::exists(folder / "out/none"));
  CHECK(fs::exists(folder / "out/evidence/manifest.json"));
  // Nothing of what failed is selected at all.
  REQUIRE(run_evidence(folder, "--overwrite --set sinks.evidence.dir=nothing --set capture.0.stages=embedding" + fault)
              .code == 1);
  CHECK_FALSE(fs::exists(folder / "out/nothing"));
}

TEST_CASE("when all holds there is no evidence, and no folder for it") {
  const TemporaryFolder folder;
  const Finished run = run_evidence(folder, "");
  CHECK(run.code == 0);
  CHECK_FALSE(fs::exists(folder / "out/evidence"));
  CHECK(fs::exists(folder / "out/always/manifest.json"));
  CHECK(read_json(folder / "out/verdict.json")["sinks_completed"] == nlohmann::json({"always"}));
  CHECK(read_json(folder / "out/verdict.json")["seconds"]["evidence"] == 0);
}

TEST_CASE("evidence that cannot be written does not cost the verdict") {
  const TemporaryFolder folder;
  write_text(folder / "out/evidence/mine.txt", "not a capture");
  const Finished run = run_evidence(folder, "--inject '{inject: nan, stage: attn_norm, layer: 2, lane: step}'");
  CHECK(run.code != 0);
  CHECK(read_text(folder / "out/evidence/mine.txt") == "not a capture");
  const auto verdict = read_json(folder / "out/verdict.json");
  CHECK(verdict["outcomes"]["falsified"] == 1);
  CHECK_THAT(verdict["failure"].get<std::string>(), Contains("mine.txt"));
}

TEST_CASE("a sink of evidence is checked before anything is computed") {
  const TemporaryFolder folder;
  const Finished run = run_evidence(folder, "--set sinks.evidence.compress=1");
  CHECK(run.code == 2);
  CHECK_THAT(run.err, Contains("compress"));
  CHECK_FALSE(fs::exists(folder / "out"));
}

}  // namespace moe_diag
