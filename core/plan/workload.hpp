// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/api/sink.hpp"
#include "core/model/program.hpp"
#include "core/ops/operator.hpp"
#include "core/plan/plan.hpp"

namespace moe_diag {

// What a plan makes a run do: counted, nothing is computed.
struct Workload {
  struct Prompt {
    const PromptSpec* spec = nullptr;
    int tokens = 0, passes = 0;
    std::int64_t stops = 0;  // of all its passes: steps after which the lanes are looked at
    bool looked_at = true;   // false: it is not computed
  };
  struct Falsifier {
    const FalsifierSpec* spec = nullptr;
    std::int64_t sites = 0, samples = 0;  // at most: two lanes may choose different experts
    std::int64_t values = 0;              // that these samples compare
    std::vector<int> prompts;             // that it looks at
    std::string untested;                 // the lane that is absent; empty: it will be judged
  };

  std::vector<Prompt> prompts;        // as in the contract
  std::vector<Falsifier> falsifiers;  // as in the plan
  std::vector<Load> captures;         // as Plan::captures
  std::vector<Load> evidence;         // as Plan::evidence: at most, when all of it fails
  std::vector<Load> sinks;            // as Contract::sinks; what two captures ask for is counted once
  std::int64_t values = 0;            // compared or looked at, each pair of lanes once however many falsifiers ask
  std::int64_t samples = 0;
};

// What the captures select, each row once; lanes that are absent give nothing.
Load load_of(const std::vector<const WatchedCapture*>& captures, const Contract& contract, const Lanes& lanes);
// The same of those that feed a sink.
Load load_of(int sink, const std::vector<WatchedCapture>& captures, const Contract& contract, const Lanes& lanes);

Workload workload_of(const Contract& contract, const Plan& plan, const Program& program, const Lanes& lanes);

// Of so many rows of a sequence of `total`, of which the head computes `head_rows`.
Cost cost_of(const Step& step, const ModelConfig& config, int rows, int total, int head_rows);

}  // namespace moe_diag
