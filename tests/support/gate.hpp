// SPDX-License-Identifier: MIT
#pragma once

// Contracts and checks of the tests that look at the runner as a CI job does.

#include <nlohmann/json.hpp>
#include <string>

#include "tests/support/process.hpp"
#include "tests/support/small_contract.hpp"

namespace moe_diag {

// Falsifiers that hold and that do not, whatever the machine.
inline const std::string held_claim =
    "  - {id: HOLDS, claim: finite, lane: free, stage: lm_head, metric: nonfinite, equals: 0, tags: [quick, logits]}\n";
inline const std::string false_claim =
    "  - {id: FAILS, claim: closer than f32 is, lane: free, stage: lm_head, metric: rel_l2, at_most: 1e-12}\n";
inline const std::string blind_claim =
    "  - {id: BLIND, claim: all is small, lane: free, stage: lm_head, metric: max_abs_diff, at_most: 1e9,\n"
    "     controls: [{inject: scale, stage: lm_head, factor: 2}]}\n";
// Needs the lane `far`, whose backend is not there, or `fed`, which it feeds.
inline const std::string far_claim =
    "  - {id: FAR, claim: far, lane: far, stage: lm_head, metric: nonfinite, equals: 0}\n";
inline const std::string fed_claim =
    "  - {id: FED, claim: fed, lane: fed, stage: lm_head, metric: nonfinite, equals: 0, tags: quick}\n";

// contract_text() under another id, with the lanes `far` and `fed`, and, when given, captures and sinks.
inline std::string gate_text(const std::string& id, const std::string& falsifiers, const std::string& captures = "",
                             const std::string& model = "{synthetic: tiny, seed: 7}") {
  std::string text = contract_text(falsifiers, model);
  text.replace(text.find("id: test"), 8, "id: " + id);
  text.insert(
      text.find("falsifiers:"),
      "  far: {backend: nowhere, numerics: f32}\n  fed: {backend: cpu, numerics: f32, inputs: far}\n" + captures);
  return text;
}

inline nlohmann::json read_json(const std::string& path) { return nlohmann::json::parse(read_text(path)); }

// What is wrong with a file by the schema it must follow; empty: nothing.
inline std::string breaches(const std::string& script, const std::string& schema, const std::string& file) {
  const std::string tree = MOE_DIAG_SOURCE_DIR;
  const Finished check = run_command(quoted(MOE_DIAG_PYTHON) + " " + quoted(tree + "/tests/unit/run/" + script) + " " +
                                     quoted(tree + "/" + schema) + " " + quoted(file));
  return check.code == 0 ? "" : check.out + check.err + " (tests/requirements.txt lists what the check needs)";
}
inline std::string junit_breaches(const std::string& file) {
  return breaches("check_xml.py", "tests/golden/junit/junit.xsd", file);
}
inline std::string json_breaches(const std::string& file) {
  return breaches("check_json.py", "docs/verdict.schema.json", file);
}

}  // namespace moe_diag
