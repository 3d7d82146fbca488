// SPDX-License-Identifier: MIT
// Lanes that only fill their caches in passes, or rest in them, give the same bytes afterwards.
#include "tests/support/lead_up.hpp"

#include <string>

namespace moe_diag {
namespace {

TEST_CASE("behind positions that only lead up to them, all lanes give the same bytes") {
  for (const std::string numerics : {"f32", "bf16", "q8_k"}) {
    INFO(numerics);
    CHECK(test::changed_by_lead_up("cpu", numerics, LeadUp::caches) == 0);
    CHECK(test::changed_by_lead_up("cpu", numerics, LeadUp::rests) > 0);  // whose cache is of other tokens
  }
}

}  // namespace
}  // namespace moe_diag
