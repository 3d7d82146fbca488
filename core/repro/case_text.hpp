// SPDX-License-Identifier: MIT
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/contract/contract.hpp"
#include "core/repro/step_cut.hpp"

namespace moe_diag {

// Files of a case, as its contract names them.
inline constexpr std::string_view case_contract = "contract.yaml", case_model = "case.gguf", case_readme = "README.txt";
std::string input_file(Stage stage);     // "inputs/moe_router_indices.npy"
std::string expected_file(Stage stage);  // "expected/moe_expert_out.npy"

// What a case's contract says: one step alone, what is claimed about it, and what is planted in it.
struct CaseContract {
  std::string id, version, description;
  std::string prompt;                // its id
  std::vector<std::int32_t> tokens;  // numbered as in the case
  std::string oracle;                // one of the lanes, in f64
  std::vector<LaneSpec> lanes;
  std::vector<FaultSpec> planted;
  std::vector<FalsifierSpec> claims;
  Site site;
  Cut cut;
  std::vector<Stage> inputs, expected;
  bool is_finite = true;  // what is expected; else nothing is claimed of the oracle
};

// As YAML.
std::string contract_text(const CaseContract& contract);

// The fault as it is in the case, with its numbers, for the prompt's positions that are in the cut; none when it
// changes nothing there. `length` is that of the whole sequence.
std::optional<FaultSpec> fault_in_case(FaultSpec fault, const Cut& cut, int length);

}  // namespace moe_diag
