// SPDX-License-Identifier: MIT
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/forward/forward.hpp"
#include "core/model/model.hpp"
#include "core/plan/plan.hpp"
#include "core/run/capture.hpp"
#include "core/run/run.hpp"
#include "core/verdict/judge.hpp"

namespace moe_diag {

// One run of one contract: its parts, in the order they come to life. run.cpp is the story, this is what happens in it.
class Runner {
 public:
  Runner(const Contract& contract, PluginHost& host, const RunOptions& options);

  bool open_model();  // false: it is absent, and everything is untested
  void plan();
  void describe_lanes();
  void open_lanes();
  void open_sinks();
  void forward();
  void close_sinks();
  void run_controls();
  void fail(const Error& error);

  Verdict verdict();
  Verdict untested();
  std::vector<std::string> absences() const;

 private:
  // All prompts through the active lanes, with the faults, shown to the hooks.
  void walk(const std::vector<Hook*>& hooks, std::vector<PlantedFault> faults, const std::vector<bool>& active,
            const std::string& what);
  ControlResult run_control(std::size_t falsifier, const FaultSpec& fault);
  double seconds() const;

  const Contract& contract_;
  PluginHost& host_;
  const RunOptions& options_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();

  std::optional<Model> model_;
  Plan plan_;
  std::unique_ptr<Lanes> lanes_;
  std::vector<PromptInfo> prompt_infos_;  // what sinks were told, valid until they are closed
  std::vector<LaneInfo> lane_infos_;
  std::unique_ptr<Capture> capture_;
  std::unique_ptr<Judge> judge_;
  Verdict verdict_;
};

}  // namespace moe_diag
