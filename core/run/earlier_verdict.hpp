// SPDX-License-Identifier: MIT
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/api/stage.hpp"
#include "core/contract/contract.hpp"

namespace moe_diag {

// A site by its name: which stages there are depends on the model.
struct EarlierSite {
  std::string stage;
  int layer = -1;
};

// Where a falsifier failed, as a verdict has it. Position -1: of a whole pass, of no stage.
struct EarlierSample {
  std::string prompt;
  int position = -1;
  EarlierSite site;
  double value = 0;
  Bound bound;
};

// Where a lane parts from the oracle by itself, on the oracle's inputs.
struct EarlierDivergence {
  std::string lane, prompt, cause;
  int position = 0;
  EarlierSite site;
};

struct EarlierFalsifier {
  std::string id, outcome;
  std::optional<EarlierSample> first_failing;
  std::vector<EarlierSample> sites;             // the worst of each
  std::string cause, why;                       // of a falsified one; why: in words, may be empty
  std::optional<EarlierDivergence> divergence;  // its own, or what it is inherited from
};

// What of a verdict is needed to run it again.
struct EarlierVerdict {
  std::string path;      // of the verdict
  std::string contract;  // absolute path
  std::string contract_id;
  std::string contract_digest;  // of its text
  std::vector<Override> overrides;
  std::vector<std::string> injected;      // in the form of `run --inject`
  std::string model, model_digest;        // source and digest; empty when there was none
  std::string first_divergence;           // id of its falsifier; empty: there is none
  std::vector<std::string> sink_outputs;  // files and folders that its sinks wrote, complete or not
  std::vector<EarlierFalsifier> falsifiers;
};

// Reads a file that json_report() wrote of one contract. Throws Error(usage) when it is not there or is no such file.
EarlierVerdict read_verdict(const std::string& path);

}  // namespace moe_diag
