// SPDX-License-Identifier: MIT
#include "core/run/run.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/run/runner.hpp"

namespace moe_diag {

// The whole flow, in the order of the folders.
Verdict run_contract(const Contract& contract, PluginHost& host, const RunOptions& options) {
  Runner runner(contract, host, options);
  if (!runner.open_model()) return runner.untested();
  runner.plan();
  runner.read_digests();
  runner.open_lanes();
  runner.claim_output();
  runner.open_sinks();
  try {
    runner.forward();
    runner.close_sinks();
    runner.judge_alone();
    runner.capture_evidence();
    runner.explain();
    if (options.controls) runner.run_controls();
    runner.finish_digest();
  } catch (const Error& e) {
    runner.fail(e);
  }
  return runner.verdict();
}

Digests digest_contract(const Contract& contract, const std::vector<std::string>& lanes, PluginHost& host,
                        const RunOptions& options) {
  Contract digested = contract;
  digested.capture.clear();
  digested.sinks.clear();
  auto& falsifiers = digested.falsifiers;
  falsifiers.erase(std::remove_if(falsifiers.begin(), falsifiers.end(),
                                  [&](const FalsifierSpec& f) {
                                    return f.digest.empty() ||
                                           (!lanes.empty() && std::count(lanes.begin(), lanes.end(), f.lane) == 0);
                                  }),
                   falsifiers.end());
  if (falsifiers.empty())
    throw Error(ErrorKind::usage, fmt::format("{}: there is nothing to digest: no falsifier {}is 'identical' with 'to: "
                                              "{{digest: FILE}}'",
                                              contract.path, lanes.empty() ? "" : "of these lanes "));
  Runner runner(digested, host, options);
  if (!runner.open_model()) throw Error(ErrorKind::absent, runner.absences().front());
  runner.plan();
  runner.open_lanes();
  return runner.digests();
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

std::vector<std::string> check_contract(const Contract& contract, PluginHost& host, RunOptions options) {
  options.controls = true;
  Runner runner(contract, host, options);
  if (runner.open_model()) {
    runner.plan();
    runner.read_digests();
    runner.describe_lanes();
    runner.check_max_bytes();
  }
  return runner.absences();
}

PlanReport plan_contract(const Contract& contract, PluginHost& host, const RunOptions& options) {
  Runner runner(contract, host, options);
  if (!runner.open_model()) return runner.plan_report();
  runner.plan();
  runner.describe_lanes();
  return runner.plan_report();
}

}  // namespace moe_diag
