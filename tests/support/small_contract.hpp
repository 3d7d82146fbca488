// SPDX-License-Identifier: MIT
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/contract/contract.hpp"
#include "core/plugin/host.hpp"
#include "core/run/run.hpp"

namespace moe_diag {

// A contract over the tiny model with an oracle, a free f32 lane and one fed by the oracle, and these falsifiers (YAML
// list items, indented by two).
inline std::string contract_text(const std::string& falsifiers, const std::string& model = "{synthetic: tiny, seed: 7}",
                                 const std::string& tokens = "[3, 141, 59]") {
  return R"(
metadata: {id: test, version: 1.0.0, description: made by a test, references: []}
model: )" +
         model + R"(
prompts: [{id: short, tokens: )" +
         tokens + R"(}]
oracle: truth
lanes:
  truth: {backend: cpu, numerics: f64}
  free: {backend: cpu, numerics: f32}
  step: {backend: cpu, numerics: f32, inputs: truth}
falsifiers:
)" + falsifiers;
}

inline Verdict judge_text(const std::string& text, RunOptions options = {}, const std::vector<std::string>& inject = {},
                          const std::vector<std::string>& plugins = {MOE_DIAG_PLUGINS, MOE_DIAG_NOTES}) {
  // The verdict points into its contract.
  static std::vector<std::unique_ptr<Contract>> contracts;
  contracts.push_back(std::make_unique<Contract>(parse_contract(text, "test.yaml")));
  for (const std::string& fault : inject) options.inject.push_back(parse_fault(fault, *contracts.back()));
  PluginHost host(plugins);
  return run_contract(*contracts.back(), host, options);
}

}  // namespace moe_diag
