// SPDX-License-Identifier: MIT
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/alone/identity.hpp"
#include "core/run/runner.hpp"

namespace moe_diag {

// The files of digests that the contract's falsifiers name, by path. One that is not there is kept with the reason.
using DigestFiles = std::map<std::string, DigestFile>;
DigestFiles read_digest_files(const Contract& contract);

// The claims that speak of passes which a lane computes alone: judged after the lockstep run, some of them by what was
// seen in it.
class AloneClaims {
 public:
  // Both outlive it.
  AloneClaims(Runner& runner, const DigestFiles& digests) : runner_(runner), digest_files_(digests) {}

  // Those who keep what the lockstep run computes, to be compared later. Once the lanes are open; they belong to this.
  std::vector<Hook*> call_witnesses();

  void judge(Verdict& verdict);
  AloneJudgement judge_control(std::size_t falsifier, const FaultSpec& fault);

  // Of all that is compared with digests, after a lockstep run with the witnesses.
  Digests digests();

 private:
  AloneParts parts();
  Judgement judgement(std::size_t falsifier, const AloneParts& parts);

  Runner& runner_;
  const DigestFiles& digest_files_;
  std::vector<std::unique_ptr<SeenRows>> witnesses_;  // per falsifier; null: it needs none
};

}  // namespace moe_diag
