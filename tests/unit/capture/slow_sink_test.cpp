// SPDX-License-Identifier: MIT
#include <string>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/support/small_contract.hpp"
#include "tests/support/temporary_folder.hpp"

namespace moe_diag {

TEST_CASE("a run says which call of a sink does not return, with what it was given, and waits for it") {
  const TemporaryFolder folder;
  std::string text = contract_text("");
  text.replace(text.find("falsifiers:"), std::string::npos,
               "capture: [{stages: [embedding, final_norm], positions: last, lanes: free, to: mine}]\n"
               "sinks: {mine: {sink: bad}}\n");
  std::vector<std::string> warnings;
  RunOptions options;
  options.out = folder / "out";
  options.slow_call = std::chrono::milliseconds(1);
  options.warn = [&](const std::string& warning) {
    if (warning.find(", final_norm, ") == std::string::npos) return;  // whatever else took a while
    warnings.push_back(warning);
    write_text(folder / "out/go", "");  // the sink waits for it
  };
  const Verdict verdict =
      judge_text(text, options, {}, {std::string(MOE_DIAG_BAD_PLUGINS) + "/waiting", MOE_DIAG_PLUGINS});
  CHECK(verdict.failure == "");
  CHECK(verdict.outputs == std::vector<std::string>{"mine"});
  REQUIRE(!warnings.empty());
  CHECK(
      warnings[0].starts_with("sink 'mine' (plugin bad): consume: prompt 'short', lane 'free', final_norm, position 2: "
                              "has not returned for "));
}

}  // namespace moe_diag
