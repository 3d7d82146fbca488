// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/alone/identity.hpp"
#include "core/capture/capture.hpp"
#include "core/explain/kept_caches.hpp"
#include "core/explain/kept_oracle.hpp"
#include "core/explain/oracle_watch.hpp"
#include "core/forward/forward.hpp"
#include "core/forward/sequences.hpp"
#include "core/model/model.hpp"
#include "core/plan/budget.hpp"
#include "core/plan/plan.hpp"
#include "core/run/run.hpp"
#include "core/verdict/judge.hpp"

namespace moe_diag {

// One run of one contract: its parts, in the order they come to life. run.cpp is the story, this is what happens in it;
// what is known before anything is computed is in runner_plan.cpp.
class Runner {
 public:
  Runner(const Contract& contract, PluginHost& host, const RunOptions& options);

  bool open_model();  // false: it is absent, and everything is untested
  void plan();
  void read_digests();  // the files that falsifiers name
  void describe_lanes();
  // What sinks will write, against what the contract allows.
  void check_max_bytes(const std::vector<PlannedOutput>& evidence = {}) const;
  void open_lanes();
  void claim_output();  // before anything is computed: a folder that can be written
  void open_sinks();
  void forward();
  void close_sinks();
  void finish_digest();     // of the model, begun with the forward pass
  void capture_evidence();  // when something is falsified: once more, for what failed
  void explain();           // when something is falsified: once more, on the oracle's inputs
  void judge_alone();       // what speaks of passes that a lane computes alone
  void run_controls();
  Digests digests();         // instead of judging: of all that is compared with digests
  void show_to(Hook& hook);  // instead of judging: the lockstep run, shown to somebody else
  void fail(const Error& error);

  Verdict verdict();
  Verdict untested();
  std::vector<std::string> absences() const;
  const Model& model() const { return *model_; }
  const std::string& model_digest() const;  // waits for it
  const Lanes& lanes() const { return *lanes_; }
  const RunningLane& lane(const std::string& name) const {
    return (*lanes_)[static_cast<std::size_t>(lanes_->index_of(name))];
  }
  const Program& program() const { return plan_.program; }
  const Sequences& sequences() const { return *sequences_; }
  PlanReport plan_report();  // of what is described; opens the lanes when they fit, to measure them

 private:
  // Told each prompt that is done, and how many of its positions were run.
  using AfterPrompt = std::function<void(int, int)>;
  // All prompts through the active lanes, with the faults, shown to the hooks.
  // Returns how much each fault has changed.
  std::vector<std::int64_t> walk(const std::vector<Hook*>& hooks, std::vector<PlantedFault> faults,
                                 const std::vector<bool>& active, const std::string& what,
                                 const AfterPrompt& after_prompt = {});
  std::unique_ptr<KeptOracle> kept_oracle() const;
  bool keeps_caches() const;
  std::vector<bool> explainable() const;
  std::uint64_t explain_memory() const;
  void check_planted() const;
  void check_bits() const;
  LaneReport lane_report(std::size_t i) const;
  std::vector<bool> lanes_to_open() const;
  std::uint64_t host_bytes(const std::vector<bool>& needed) const;
  void check_memory(const std::vector<bool>& needed) const;
  std::shared_ptr<const Model> opened_model() const;
  void note_absent_lanes(const std::vector<WatchedCapture>& captures);
  std::vector<PlannedOutput> outputs_of(const Capture& capture, const std::vector<WatchedCapture>& captures) const;
  void plan_outputs(PlanReport& report) const;
  void check_free_space(const std::vector<PlannedOutput>& outputs) const;
  void check_output_files();
  void note_sink_outputs(const std::vector<PlannedOutput>& outputs);
  void open_sinks(Capture& capture);
  std::vector<PlantedFault> planted() const;
  void note_ends();
  void stop_without_oracle();
  AloneParts alone_parts();
  std::vector<Hook*> call_witnesses();
  AloneJudgement judge_alone_control(std::size_t falsifier, const FaultSpec& fault);
  ControlResult run_control(std::size_t falsifier, const FaultSpec& fault);
  void name_tensors();
  void report_prompts();
  void finish_digest_after_failure();
  double seconds() const;

  const Contract& contract_;
  PluginHost& host_;
  const RunOptions& options_;
  const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();

  std::shared_ptr<const Model> model_;
  Plan plan_;
  std::unique_ptr<Lanes> lanes_;
  std::vector<PromptInfo> prompt_infos_;  // what sinks were told, valid until they are closed
  std::vector<LaneInfo> lane_infos_;
  std::vector<std::string_view> planted_infos_;
  std::unique_ptr<Capture> capture_;
  std::unique_ptr<Capture> evidence_;  // once something is falsified
  // What sinks are told of the model.
  struct DigestForSinks final : ModelDigest {
    explicit DigestForSinks(const Runner& of) : runner(of) {}
    std::string_view get() const override { return runner.model_digest(); }
    const Runner& runner;
  };

  DigestForSinks digest_for_sinks_{*this};
  bool overwrite_ = false;              // as the options say, or because all that is there came from an earlier run
  std::atomic<bool> computes_ = false;  // the lanes do, and tell how far they are
  std::unique_ptr<Judge> judge_;
  std::unique_ptr<Sequences> sequences_;
  std::map<std::string, DigestFile> digest_files_;    // by path
  std::vector<std::unique_ptr<SeenRows>> witnesses_;  // per falsifier; null: it needs none
  std::unique_ptr<OracleWatch> oracle_watch_;         // once the lockstep run has begun; null: there is no oracle
  std::unique_ptr<KeptOracle> record_;                // once the lockstep run has begun; null: there is none
  std::unique_ptr<KeptCaches> kept_;                  // the same, of what is not in the record
  std::vector<bool> lockstep_;                        // lanes that take part in the lockstep run
  Verdict verdict_;
  std::vector<std::pair<std::string, FaultSpec>> planted_;  // of the contract and of the options, with their place
  std::vector<std::string> planted_in_vain_;
};

}  // namespace moe_diag
