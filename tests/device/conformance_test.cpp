// SPDX-License-Identifier: MIT
#include <string>

#include "tests/support/catch.hpp"
#include "tests/support/process.hpp"

namespace moe_diag::test {

// In a process that has not used the device: the command starts others, which inherit nothing of it.
TEST_CASE("the cuda backend keeps every promise, in all numerics", "[ops]") {
  const std::string plugin = std::string(MOE_DIAG_PLUGINS) + "/moe_diag_backend_cuda.so";
  const Finished finished = run_tool("plugins --conformance " + quoted(plugin) + " --call-limit 60");
  INFO(finished.out << finished.err);
  CHECK(finished.code == 0);
}

}  // namespace moe_diag::test
