// SPDX-License-Identifier: MIT
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/bus/bus.hpp"
#include "core/bus/fault.hpp"
#include "core/forward/forward.hpp"
#include "core/forward/sequences.hpp"
#include "core/lane/lanes.hpp"
#include "core/model/model.hpp"
#include "core/plan/plan.hpp"
#include "core/run/planted_faults.hpp"
#include "core/run/run.hpp"
#include "core/run/run_digest.hpp"
#include "core/verdict/verdict.hpp"

namespace moe_diag {

// Takes the prompts of a contract through its lanes: opens model and lanes, and walks. Whoever looks on is a hook, and
// what is made of it is the business of others: Claims judge, Outputs feed sinks, Explaining names causes.
class Runner {
 public:
  Runner(const Contract& contract, PluginHost& host, const RunOptions& options);

  // In this order; what is not opened yet may not be asked for.
  bool open_model();  // false: it is absent, and why is in model_report()
  void plan();
  void describe_lanes();
  void check_faults() const;  // whether values have the bits that faults flip; with RunOptions::controls also those
  void check_memory() const;
  void open_lanes();  // that somebody looks at; those that nobody has described are described and checked first

  const Contract& contract() const { return contract_; }
  PluginHost& host() const { return host_; }
  const RunOptions& options() const { return options_; }
  const Model& model() const { return *model_; }
  const Recordings& recordings() const { return recordings_; }
  const Plan& planned() const { return plan_; }
  const Program& program() const { return plan_.program; }
  Lanes& lanes() { return *lanes_; }
  const Lanes& lanes() const { return *lanes_; }
  const RunningLane& lane(int index) const { return (*lanes_)[static_cast<std::size_t>(index)]; }
  const RunningLane& lane(const std::string& name) const { return lane(lanes_->index_of(name)); }
  int oracle() const { return lanes_->index_of(contract_.oracle); }  // -1: there is none
  // The lanes that take part in the lockstep run, and all that are opened: evidence may need more.
  const std::vector<bool>& lockstep() const { return lockstep_; }
  std::vector<bool> lanes_to_open() const;
  std::uint64_t host_bytes() const;  // of the buffers and rounded weights of those
  Sequences& sequences() { return *sequences_; }
  const Sequences& sequences() const { return *sequences_; }
  const PlantedFaults& planted_faults() const { return planted_; }
  const ModelDigest& digest() const { return *digest_; }
  const std::string& model_digest() const { return digest_->wait(); }
  double seconds() const;  // since the run began

  // One walk of all prompts.
  struct Walk {
    std::vector<Hook*> hooks;
    std::vector<PlantedFault> faults;
    std::vector<bool> lanes;  // that take part
    std::string what;         // for progress; empty: each prompt by its name
    // Told each prompt that is done, and how many of its positions were run; may be empty.
    std::function<void(int, int)> after_prompt;
  };
  // Returns how much each fault has changed.
  std::vector<std::int64_t> walk(const Walk& walk);
  void show_to(Hook& hook);  // the lockstep run, to somebody alone

  // A prompt that the oracle is to continue ends where the oracle is absent.
  void stop_without_oracle();
  // Waits for the rest of the model's digest, for a verdict: one without falsifiers has none. Returns the seconds.
  double finish_digest() const;

  // What a verdict says of the run.
  Verdict begin_verdict() const;
  ModelReport model_report() const { return model_report_; }
  LaneReport lane_report(std::size_t lane) const;
  std::vector<std::string> absences() const;  // of the model and of lanes, a line each
  Verdict untested() const;                   // where the model is absent
  void fail(const Error& error, Verdict& verdict) const;
  void finish(Verdict& verdict) const;

 private:
  std::vector<PromptReport> prompt_reports() const;

  const Contract& contract_;
  PluginHost& host_;
  const RunOptions& options_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  const std::time_t started_ = std::time(nullptr);
  const PlantedFaults planted_;
  std::shared_ptr<const Model> model_;
  ModelReport model_report_;
  std::optional<RunDigest> digest_;
  Recordings recordings_;
  Plan plan_;
  std::unique_ptr<Lanes> lanes_;
  std::vector<bool> lockstep_;
  std::unique_ptr<Sequences> sequences_;
};

}  // namespace moe_diag
