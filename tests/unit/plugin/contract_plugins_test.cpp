// SPDX-License-Identifier: MIT
// What the plugins of a contract do not know is told with all other mistakes, at its place.
#include <string>

#include "core/plugin/contract_plugins.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/small_contract.hpp"

namespace moe_diag {
namespace {

using Catch::Matchers::Contains;

const std::string claim = "  - {id: A, claim: a, lane: free, stage: lm_head, metric: nonfinite, equals: 0}\n";

// All that is wrong with the contract after a change of its text; empty: nothing.
std::string mistakes(const std::string& from, const std::string& to, const std::vector<Override>& set = {}) {
  std::string text = contract_text(claim);
  text += "capture: [{stages: lm_head, to: dump}]\nsinks: {dump: {sink: npy, dir: dump}}\n";
  if (!from.empty()) text.replace(text.find(from), from.size(), to);
  PluginHost host({MOE_DIAG_PLUGINS, MOE_DIAG_NOTES});
  try {
    parse_contract(text, "c.yaml", set, plugin_check(host));
  } catch (const Error& e) {
    CHECK(e.kind() == ErrorKind::usage);
    return e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("a contract whose plugins know it all has no mistake") { CHECK(mistakes("", "") == ""); }

TEST_CASE("a backend or sink that nobody has is a mistake with its place and the nearest name") {
  CHECK_THAT(mistakes("free: {backend: cpu", "free: {backend: cpuu"),
             Contains("c.yaml:8:19: lane 'free': there is no backend 'cpuu', did you mean 'cpu'?"));
  CHECK_THAT(mistakes("sink: npy", "sink: npz"), Contains("sink 'dump': there is no sink 'npz', did you mean 'npy'?"));
  CHECK_THAT(mistakes("sink: npy", "sink: numpy"),
             Contains("sink 'dump': there is no sink 'numpy'; known: hdf5, npy, stats; searched: "));
  CHECK_THAT(mistakes("sink: npy", "sink: cpu"), Contains("('cpu' is a backend)"));
  CHECK_THAT(mistakes("", "", {{"lanes.free.backend", "cudaa"}}), Contains("--set lanes.free.backend: lane 'free'"));
}

TEST_CASE("a backend that a note speaks of is known, and may be absent") {
  CHECK(mistakes("free: {backend: cpu", "free: {backend: nowhere") == "");
  CHECK_THAT(mistakes("free: {backend: cpu", "free: {backend: nowere"), Contains("did you mean 'nowhere'?"));
}

TEST_CASE("options that a plugin does not read, or cannot have, are mistakes with the nearest name") {
  CHECK_THAT(mistakes("free: {backend: cpu, numerics: f32", "free: {backend: cpu, numerics: q8k"),
             Contains("c.yaml:8:34: lane 'free': numerics: found 'q8k', expected one of f64, f32, bf16, q8_k: did you "
                      "mean 'q8_k'?"));
  CHECK_THAT(mistakes("free: {backend: cpu, numerics: f32", "free: {backend: cpu, numerics: f32, thread: 2"),
             Contains("plugin 'cpu': unknown key 'thread', did you mean 'threads'?"));
  CHECK_THAT(mistakes("free: {backend: cpu, numerics: f32", "free: {backend: cpu, numerics: f32, threads: 0"),
             Contains("threads: found '0', expected a whole number from 1 to"));
  CHECK_THAT(mistakes("dir: dump", "dri: dump"), Contains("unknown key 'dri', did you mean 'dir'?") &&
                                                     Contains("sink 'dump': dir: missing, this key is required"));
  CHECK_THAT(mistakes("dir: dump", "dir: ../dump"), Contains("expected a path below --out"));
}

TEST_CASE("plugins' mistakes are told beside those of the contract itself") {
  std::string text = contract_text(claim);
  text.replace(text.find("backend: cpu"), 12, "backend: cpuu");
  text.replace(text.find("equals: 0"), 9, "equls: 0");
  PluginHost host({MOE_DIAG_PLUGINS});
  CHECK_THROWS_WITH(parse_contract(text, "c.yaml", {}, plugin_check(host)),
                    Contains("did you mean 'cpu'?") && Contains("unknown key 'equls', did you mean 'equals'?") &&
                        !Contains("a threshold is missing"));
}

}  // namespace moe_diag
