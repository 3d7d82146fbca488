// SPDX-License-Identifier: MIT
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/capture/capture.hpp"
#include "core/plan/budget.hpp"
#include "core/run/runner.hpp"
#include "core/verdict/verdict.hpp"

namespace moe_diag {

// What the sinks of a run are fed, and what they write: what is captured whatever the outcome, and the evidence once
// something is falsified.
class Outputs {
 public:
  // Builds the sinks, which touches nothing on disk; refuses outputs over what the call reads or writes itself. The
  // runner, which outlives it, has described its lanes.
  explicit Outputs(Runner& runner);

  void check_max_bytes() const;  // that the contract allows
  void check_room() const;       // that, and the free space
  void open(Verdict& verdict);   // before anything is computed: a folder that can be written, and the sinks

  Hook& hook() { return *capture_; }
  void note_ends(Verdict& verdict) const;  // of sequences that could not go on
  void close(Verdict& verdict);
  void capture_evidence(Verdict& verdict);  // when something is falsified: once more, for what failed

  // What would be written, evidence at most, sink by sink; and why it may not be, empty: it may.
  std::vector<PlannedOutput> all() const;
  std::string over_budget() const;

 private:
  std::vector<PlannedOutput> of(const Capture& capture, const std::vector<WatchedCapture>& captures) const;
  std::vector<PlannedOutput> always() const;
  std::vector<PlannedOutput> evidence() const;
  void check_files();
  void check_max_bytes(const std::vector<PlannedOutput>& outputs) const;
  void check_free_space(const std::vector<PlannedOutput>& outputs) const;
  void note_absent_lanes(const std::vector<WatchedCapture>& captures, Verdict& verdict) const;
  void open_sinks(Capture& capture, const Verdict& verdict);

  Runner& runner_;
  const Contract& contract_;
  const RunOptions& options_;
  bool overwrite_;                        // as the options say, or because all that is there is of an earlier run
  std::vector<std::string> left_;         // by that run
  std::vector<PromptInfo> prompt_infos_;  // what sinks were told, valid until they are closed
  std::vector<LaneInfo> lane_infos_;
  ModelInfo model_info_;
  std::vector<std::string_view> planted_infos_;
  std::unique_ptr<Capture> capture_;
  std::unique_ptr<Capture> evidence_;  // once something is falsified
};

}  // namespace moe_diag
