// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <vector>

#include "core/run/alone_claims.hpp"
#include "core/run/runner.hpp"
#include "core/verdict/coverage.hpp"
#include "core/verdict/judge.hpp"

namespace moe_diag {

// The falsifiers of a contract: judged as the lockstep run passes by, or of passes of a lane alone after it, and held
// against their controls.
class Claims {
 public:
  // Both outlive it; the runner's lanes are open.
  Claims(Runner& runner, const DigestFiles& digests);

  std::vector<Hook*> hooks();
  // True when a sample of the prompt failed so far; of these falsifiers only.
  bool saw_failing(int prompt, const std::vector<bool>& falsifiers) const {
    return judge_.saw_failing(prompt, falsifiers);
  }

  // The rest after the lockstep run, in this order.
  void judge_lockstep(Verdict& verdict);
  void judge_alone(Verdict& verdict) { alone_.judge(verdict); }
  void run_controls(Verdict& verdict);

  // Where the lockstep run has failed. A falsified claim stays falsified whatever would have followed.
  void judge_what_was_seen(const std::string& failure, Verdict& verdict) const;

 private:
  ControlResult run_control(std::size_t falsifier, const FaultSpec& fault);

  Runner& runner_;
  Judge judge_;
  Coverage coverage_;
  AloneClaims alone_;
};

}  // namespace moe_diag
