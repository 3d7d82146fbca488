// SPDX-License-Identifier: MIT
// The whole flow: a contract and the plugins go in, a verdict comes out.
//
// A Runner holds what is computed with: the model (core/model), the plan, which is the contract resolved against it
// (core/plan), and the lanes: executions of the model by backends, one of which is the oracle (core/lane). It walks the
// prompts through all lanes in lockstep, pass by pass (core/forward), and shows hooks the stages that they want
// (core/bus). During this walk hooks make all that comes of a run. What needs a lane once more comes behind it: claims
// about one lane alone, evidence, explaining, and controls, which plant faults to see that a falsifier catches them.
//
// Each part owns some of it:
//   Claims      judge the falsifiers (core/verdict, core/alone), and run their controls
//   Outputs     feed the sinks (core/capture); nobody else writes to disk
//   Explaining  says why something is falsified (core/explain)
// Parts know the runner and not each other: what one needs of another is passed by this file or stands in the verdict,
// which callers turn into reports (core/report). A new use of a run is a new part: construct it in run_contract(), and
// add its hook in run_lockstep(). One more metric, sink, cause or report belongs into those folders.
#include "core/run/run.hpp"

#include "core/run/claims.hpp"
#include "core/run/explaining.hpp"
#include "core/run/outputs.hpp"
#include "core/run/runner.hpp"

namespace moe_diag {
namespace {

// All prompts through all lanes that somebody looks at. Returns the planted faults that changed nothing.
std::vector<std::string> run_lockstep(Runner& runner, Claims& claims, Outputs& outputs, Explaining& explaining,
                                      Verdict& verdict) {
  verdict.timing.open = runner.seconds();
  runner.model().begin_digest();  // on a thread of its own
  runner.stop_without_oracle();
  std::vector<Hook*> hooks = claims.hooks();
  hooks.insert(hooks.end(), {&outputs.hook(), &runner.sequences()});  // sequences choose the tokens behind a prompt
  const std::vector<Hook*> beside = explaining.hooks_beside(hooks);
  hooks.insert(hooks.end(), beside.begin(), beside.end());
  const auto end_prompt = [&](int prompt, int positions) {
    explaining.end_prompt(prompt, positions, claims.saw_failing(prompt, explaining.explainable()));
  };
  const std::vector<std::int64_t> changed = runner.walk({.hooks = hooks,
                                                         .faults = runner.planted_faults().in(runner.lanes()),
                                                         .lanes = runner.lockstep(),
                                                         .what = "",
                                                         .after_prompt = end_prompt});
  explaining.end_run();
  claims.judge_lockstep(verdict);
  outputs.note_ends(verdict);
  verdict.timing.forward = runner.seconds() - verdict.timing.open;
  return runner.planted_faults().in_vain(runner.lanes(), changed);
}

// Nobody can find a fault that changed nothing, so a verdict in which all holds beside it would mean nothing.
void refuse_faults_in_vain(const std::vector<std::string>& faults, Verdict& verdict) {
  for (const std::string& fault : faults) {
    verdict.failure =
        "fault '" + fault + "' changed nothing: it was planted where nothing is computed, or makes no difference there";
    verdict.failure_is_usage = true;
  }
}

}  // namespace

Verdict run_contract(const Contract& contract, PluginHost& host, const RunOptions& options) {
  Runner runner(contract, host, options);
  if (!runner.open_model()) return runner.untested();
  runner.plan();
  const DigestFiles digests = read_digest_files(contract);  // claims of identical bytes compare with them
  runner.describe_lanes();                                  // nothing large is allocated yet
  Outputs outputs(runner);
  runner.check_faults();
  runner.check_memory();
  outputs.check_room();
  runner.open_lanes();

  Verdict verdict = runner.begin_verdict();
  outputs.open(verdict);
  Claims claims(runner, digests);
  Explaining explaining(runner);
  std::vector<std::string> in_vain;
  try {
    in_vain = run_lockstep(runner, claims, outputs, explaining, verdict);
    outputs.close(verdict);
    claims.judge_alone(verdict);
    outputs.capture_evidence(verdict);
    explaining.explain(verdict);
    if (options.controls) claims.run_controls(verdict);
    verdict.timing.digest += runner.finish_digest();
  } catch (const Error& e) {
    runner.fail(e, verdict);
    claims.judge_what_was_seen(e.what(), verdict);
  }
  refuse_faults_in_vain(in_vain, verdict);
  explaining.finish(verdict);
  runner.finish(verdict);
  return verdict;
}

// The same steps, as far as nothing is computed.
std::vector<std::string> check_contract(const Contract& contract, PluginHost& host, RunOptions options) {
  options.controls = true;
  Runner runner(contract, host, options);
  if (!runner.open_model()) return runner.absences();
  runner.plan();
  const DigestFiles digests = read_digest_files(contract);
  runner.describe_lanes();
  const Outputs outputs(runner);
  runner.check_faults();
  outputs.check_max_bytes();
  std::vector<std::string> absences = runner.absences();
  for (const auto& [path, file] : digests)
    if (!file.absent.empty()) absences.push_back("digests: " + file.absent);
  return absences;
}

Verdict not_run(const Contract& contract, const Error& why) {
  Verdict verdict;
  verdict.contract = &contract;
  verdict.started = std::time(nullptr);
  verdict.failure = why.what();
  verdict.failure_is_usage = why.kind() != ErrorKind::environment;
  for (const PromptSpec& prompt : contract.prompts) verdict.prompts.push_back({prompt.tokens, 0, {}, ""});
  for (const FalsifierSpec& spec : contract.falsifiers) {
    Judgement j;
    j.spec = &spec;
    j.reason = "the run did not begin";  // why, the verdict says once
    verdict.judgements.push_back(std::move(j));
  }
  return verdict;
}

}  // namespace moe_diag
