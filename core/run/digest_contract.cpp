// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>

#include "core/run/alone_claims.hpp"
#include "core/run/run.hpp"
#include "core/run/runner.hpp"

namespace moe_diag {
namespace {

// The contract with nothing but what is compared with digests, of these lanes or of all.
Contract digested(const Contract& contract, const std::vector<std::string>& lanes) {
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
  return digested;
}

}  // namespace

Digests digest_contract(const Contract& contract, const std::vector<std::string>& lanes, PluginHost& host,
                        const RunOptions& options) {
  const Contract only = digested(contract, lanes);
  Runner runner(only, host, options);
  if (!runner.open_model()) throw Error(ErrorKind::absent, runner.absences().front());
  runner.plan();
  runner.open_lanes();
  for (std::size_t i = 0; i < runner.lanes().size(); ++i)
    if (const RunningLane& lane = runner.lanes()[i]; runner.lockstep()[i] && !lane.runs())
      throw Error(ErrorKind::absent, fmt::format("lane '{}' is absent: {}", lane.name, lane.absent));
  const DigestFiles none;
  AloneClaims claims(runner, none);
  std::vector<Hook*> hooks = claims.call_witnesses();
  hooks.push_back(&runner.sequences());
  runner.model().begin_digest();
  runner.walk({hooks, runner.planted_faults().in(runner.lanes()), runner.lockstep(), "", {}});
  for (int p = 0; p < static_cast<int>(only.prompts.size()); ++p)
    if (const std::string& why = runner.sequences().stopped(p); !why.empty()) throw Error(ErrorKind::environment, why);
  return claims.digests();
}

}  // namespace moe_diag
