// SPDX-License-Identifier: MIT
#include "core/run/claims.hpp"

#include <fmt/format.h>

#include "core/verdict/controls.hpp"

namespace moe_diag {
namespace {

// The oracle's lane, when it takes part in the lockstep run; else -1.
int oracle_in_lockstep(const Runner& runner) {
  const int oracle = runner.oracle();
  return oracle >= 0 && runner.lockstep()[static_cast<std::size_t>(oracle)] ? oracle : -1;
}

}  // namespace

Claims::Claims(Runner& runner, const DigestFiles& digests)
    : runner_(runner),
      judge_(runner.planned(), runner.lanes()),
      coverage_(runner.planned(), runner.model().config(), oracle_in_lockstep(runner)),
      alone_(runner, digests) {}

std::vector<Hook*> Claims::hooks() {
  std::vector<Hook*> hooks = alone_.call_witnesses();
  hooks.insert(hooks.end(), {&judge_, &coverage_});
  return hooks;
}

void Claims::judge_lockstep(Verdict& verdict) {
  const Sequences& sequences = runner_.sequences();
  for (int p = 0; p < static_cast<int>(runner_.contract().prompts.size()); ++p)
    if (const std::string& why = sequences.stopped(p); !why.empty()) judge_.note_end(p, sequences.known(p), why);
  verdict.judgements = judge_.judgements();
  verdict.coverage = coverage_.layers();
}

void Claims::run_controls(Verdict& verdict) {
  const double before = runner_.seconds();
  verdict.controls = true;
  for (std::size_t f = 0; f < verdict.judgements.size(); ++f) {
    Judgement& judgement = verdict.judgements[f];
    if (judgement.outcome != Outcome::held) continue;
    for (const FaultSpec& fault : judgement.spec->controls) {
      const double start = runner_.seconds();
      judgement.controls.push_back(run_control(f, fault));
      judgement.seconds += runner_.seconds() - start;
      const ControlResult& result = judgement.controls.back();
      if (result.tripped) continue;
      judgement.outcome = Outcome::vacuous;
      if (judgement.reason.empty()) judgement.reason = fmt::format("control '{}': {}", result.fault, result.message);
    }
  }
  verdict.timing.controls = runner_.seconds() - before;
}

ControlResult Claims::run_control(std::size_t falsifier, const FaultSpec& fault) {
  const Plan& plan = runner_.planned();
  const WatchedFalsifier& watched = plan.falsifiers[falsifier];
  const std::optional<Site> expected = expected_site(watched, fault, runner_.lane(watched.lane), plan.program);
  if (is_alone(watched.spec->metric)) {
    const AloneJudgement judged = alone_.judge_control(falsifier, fault);
    return judge_control(judged.judgement, fault, expected, judged.changed);
  }
  Judge judge(plan, runner_.lanes(), static_cast<int>(falsifier));
  const std::vector<std::int64_t> changed = runner_.walk({{&judge},
                                                          {{watched.lane, fault}},
                                                          lanes_needed_by(watched, runner_.lanes()),
                                                          fmt::format("control of {}", watched.spec->id),
                                                          {}});
  return judge_control(judge.judgements()[falsifier], fault, expected, changed.front());
}

void Claims::judge_what_was_seen(const std::string& failure, Verdict& verdict) const {
  if (!verdict.judgements.empty()) return;
  verdict.judgements = judge_.judgements();
  for (Judgement& j : verdict.judgements) {
    if (j.outcome != Outcome::held) continue;
    j.outcome = Outcome::untested;
    j.reason = fmt::format("not all of it was judged: {}", failure);
  }
}

}  // namespace moe_diag
