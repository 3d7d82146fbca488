// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/explain/examiner.hpp"
#include "core/explain/kept_caches.hpp"
#include "core/explain/kept_oracle.hpp"
#include "core/explain/oracle_watch.hpp"
#include "core/run/runner.hpp"

namespace moe_diag {

// What explaining a failure takes of the lockstep run is kept here while that goes on; what failed is then run once
// more on the oracle's inputs, and its causes are named.
class Explaining {
 public:
  explicit Explaining(Runner& runner);  // which outlives it; its lanes are open

  // Those who look on for it, beside these.
  std::vector<Hook*> hooks_beside(const std::vector<Hook*>& others);
  // Falsifiers whose failures some step may explain.
  const std::vector<bool>& explainable() const { return explainable_; }
  // Once the prompt's last pass is done. `failed`: one of those has a sample that failed in it.
  void end_prompt(int prompt, int positions, bool failed);
  void end_run();

  void explain(Verdict& verdict);  // when something is falsified
  // Puts an oracle that is not finite first, and names the weights that the first divergence is about.
  void finish(Verdict& verdict) const;

 private:
  bool keeps_caches() const;
  void look_beside_recordings();
  void explain_recordings(Verdict& verdict);
  std::string recorded_place(const Divergence& divergence) const;
  static void add_part(const Verdict& verdict, Divergence& divergence);
  bool make_explanations(Verdict& verdict, std::unique_ptr<KeptOracle> record);

  Runner& runner_;
  const std::vector<bool> explainable_;
  std::unique_ptr<KeptOracle> record_;  // null: there is none, or no more
  KeptCaches caches_;                   // of what is not in the record
  const bool keeps_caches_;
  // Examines recorded lanes during the lockstep run, where the oracle computes each step on the recorded inputs: then
  // nothing is run again. Null: no recording feeds the oracle.
  std::unique_ptr<Examiner> beside_;
  std::unique_ptr<OracleWatch> watch_;  // once the lockstep run has begun; null: there is no oracle
};

// What the oracle computes in the lockstep run is recorded in; null: nothing is. The runner has described its lanes.
std::unique_ptr<KeptOracle> record_of_oracle(const Runner& runner);

}  // namespace moe_diag
