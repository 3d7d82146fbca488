// SPDX-License-Identifier: MIT
// Lanes show what they have in their caches, and take over what others have.
#include "tests/support/caches.hpp"

#include <string>

namespace moe_diag {
namespace {

TEST_CASE("a fed lane that joins late gives the same bytes as one that was there all the time") {
  for (const std::string numerics : {"f32", "bf16", "q8_k"}) {
    INFO(numerics);
    CHECK(test::changed_by_late_start("cpu", numerics, true) == 0);
    CHECK(test::changed_by_late_start("cpu", numerics, false) > 0);  // it attends to other tokens
  }
}

TEST_CASE("a cache is read as it was computed, and written in another type") { test::check_cache("cpu", "f32"); }

}  // namespace
}  // namespace moe_diag
