// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/plan/budget.hpp"
#include "core/plan/workload.hpp"
#include "core/verdict/verdict.hpp"

namespace moe_diag {

// What a contract would make a run do.
struct PlanReport {
  struct Lane {
    LaneReport is;
    bool needed = false;                             // somebody looks at it, or it feeds one that is looked at
    bool on_device = false;                          // its memory is a device's
    std::string kernels;                             // may be empty
    std::uint64_t lane_bytes = 0, weight_bytes = 0;  // buffers; copies of the weights, shared by a device's lanes
    std::uint64_t device_bytes = 0;                  // all of the device's memory; 0: of the host, or not known
    double seconds = 0;                              // of the forward passes, about
  };
  struct Seconds {
    double open = 0;  // measured: the model and the lanes
    double forward = 0, judging = 0;
    double solo = 0;      // lanes alone
    double controls = 0;  // with `run --controls`
    std::string unknown;  // why there is no estimate; empty: there is one
    double total() const { return open + forward + judging + solo; }
  };

  const Contract* contract = nullptr;
  ModelReport model;  // absent: nothing below is known
  std::vector<Lane> lanes;
  Workload work;
  std::vector<PlannedOutput> outputs;  // of all sinks; those of evidence at most
  std::string over_budget;             // why the run would be refused for what it writes; empty: it would not be
  std::int64_t controls = 0;           // of the falsifiers that will be judged
  std::uint64_t host_bytes = 0;        // that the lanes need
  std::uint64_t kept_bytes = 0;        // that what the oracle computes may take beside it, for explaining
  std::uint64_t host_available = 0;    // without swapping
  Seconds seconds;

  bool fits() const { return host_bytes <= host_available; }
};

std::string plan_report(const PlanReport& plan);
std::string plan_json(const PlanReport& plan, std::string_view tool_version);

}  // namespace moe_diag
