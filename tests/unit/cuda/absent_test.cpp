// SPDX-License-Identifier: MIT
// The cuda backend where there is no GPU: it is a plugin like any other, and says what is missing.
#include <filesystem>
#include <fstream>

#include "core/plugin/host.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/process.hpp"
#include "tests/support/temporary_folder.hpp"

namespace moe_diag {
namespace {

using Catch::Matchers::Contains;

constexpr const char* contract_text = R"(metadata: {id: gpu, version: 1.0.0, description: a, references: []}
model: {synthetic: tiny, seed: 7}
prompts: [{id: short, tokens: [3, 141, 59]}]
oracle: truth
lanes:
  truth: {backend: cpu, numerics: f64}
  gpu: {backend: cuda, numerics: NUMERICS, inputs: truth}
falsifiers:
  - {id: ERROR, claim: a, lane: gpu, stage: all, metric: rel_l2, at_most: 1e-5}
)";

Finished run_with(const std::string& numerics, const std::string& before = "") {
  const TemporaryFolder folder;
  std::string text = contract_text;
  text.replace(text.find("NUMERICS"), 8, numerics);
  std::ofstream(folder / "contract.yaml") << text;
  return run_command(before + quoted(MOE_DIAG_EXE) + " run " + quoted(folder / "contract.yaml") + " --out " +
                     quoted(folder / "out"));
}

}  // namespace

TEST_CASE("the cuda backend is listed, built or with the reason why not") {
  PluginHost host({MOE_DIAG_PLUGINS});
  bool found = false;
  for (const PluginRecord& record : host.list()) {
    if (record.name != "cuda") continue;
    found = true;
    INFO(record.refusal);
    CHECK(record.refusal.empty());
    CHECK(record.summary.empty() == !record.absent.empty());
  }
  CHECK(found);
}

TEST_CASE("without a device what needs the cuda lane is untested, and the report says what is missing") {
  for (const std::string numerics : {"f32", "bf16", "q8_1"}) {
    const Finished finished = run_with(numerics, "CUDA_VISIBLE_DEVICES= ");
    INFO(finished.out << finished.err);
    CHECK(finished.code == 3);
    CHECK_THAT(finished.out, Contains("untested   ERROR") && Contains("lane 'gpu' is absent: "));
    CHECK_THAT(finished.out, Contains("no NVIDIA driver") || Contains("shows no device") || Contains("was not built"));
  }
}

TEST_CASE("numerics that the cuda backend does not have are refused, device or not") {
  PluginHost host({MOE_DIAG_PLUGINS});
  for (const PluginRecord& record : host.list())
    if (record.name == "cuda" && record.absent.empty()) {
      for (const std::string numerics : {"f64", "q8_k"}) {
        const Finished finished = run_with(numerics);
        INFO(finished.out << finished.err);
        CHECK(finished.code == 2);
        CHECK_THAT(finished.err, Contains("numerics: found '" + numerics + "', expected one of f32, bf16, q8_1"));
      }
    }
}

TEST_CASE("a plugin that was not built is absent, with the reason its note gives") {
  const TemporaryFolder folder;
  std::ofstream(folder / "moe_diag_backend_far.absent") << "no compiler for it at configure time\n";
  PluginHost host({folder / ""});
  const auto records = host.list();
  REQUIRE(records.size() == 1);
  CHECK(records[0].name == "far");
  CHECK(records[0].absent == "no compiler for it at configure time");
  try {
    host.make_backend("far", Options());
    FAIL("a backend that is not there was made");
  } catch (const Error& e) {
    CHECK(e.kind() == ErrorKind::absent);
    CHECK_THAT(e.what(), Contains("backend plugin 'far' was not built: no compiler for it at configure time"));
  }
}

}  // namespace moe_diag
