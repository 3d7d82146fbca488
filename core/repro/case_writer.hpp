// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <vector>

#include "core/forward/sequences.hpp"
#include "core/model/model.hpp"
#include "core/model/program.hpp"
#include "core/plugin/host.hpp"
#include "core/repro/case_folder.hpp"
#include "core/repro/case_text.hpp"
#include "core/repro/seen_step.hpp"
#include "core/run/earlier_verdict.hpp"
#include "core/run/run.hpp"

namespace moe_diag {

// Writes one step as a case, as small as it still fails, and if that is not too large, with the values it failed with.
class CaseWriter {
 public:
  // All outlive it.
  struct Parts {
    const EarlierVerdict& verdict;
    const EarlierFalsifier& falsifier;
    const Contract& contract;  // as it was run to see the step, planted faults included
    const Model& model;
    const Program& program;
    const Sequences& sequences;
    const SeenStep& seen;
    const std::string& lane;  // of the step
    const StepWatcher::Where& where;
    std::vector<FalsifierSpec> claims;  // one of them has to fail
    const RunOptions& options;
  };
  CaseWriter(const Parts& parts, PluginHost& host, const CaseFolder& folder);

  // False when none of the cases that were tried fails.
  bool write();

  std::string what_held() const;  // of the last case that was tried: the claims and the numbers that held, a line each
  std::string summary(const std::string& place) const;  // of the case: a few lines for a person

 private:
  void choose_lanes();
  void add_lane(const std::string& name, bool fed);
  std::string add_oracle();
  bool has_fault(const std::string& lane) const;
  bool write_cut(const Cut& cut);  // false: the case does not fail
  void cut_to(const Cut& cut);
  std::vector<GivenValues> outputs(const CaseContract& without);
  void compare_with_run(const SeenStep& alone);
  bool fails();
  std::string readme() const;
  std::string numbers() const;
  std::string values_text() const;

  const Parts parts_;
  PluginHost& host_;
  const CaseFolder& folder_;
  RunOptions options_;  // of the case's runs
  const Step step_;
  std::vector<std::int32_t> tokens_;
  CaseContract case_;
  std::string held_, failed_;  // claims with their numbers
  double changed_ = 0;         // largest difference between what the lane gives alone and gave in the run; may be NaN
};

}  // namespace moe_diag
