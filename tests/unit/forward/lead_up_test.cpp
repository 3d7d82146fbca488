// SPDX-License-Identifier: MIT
// Lanes that only fill their caches in a pass, or rest in it, give the same bytes afterwards.
#include "tests/support/lead_up.hpp"

#include <string>

namespace moe_diag {
namespace {

TEST_CASE("behind positions that only lead up to them, all lanes give the same bytes") {
  for (const std::string numerics : {"f32", "bf16", "q8_k"}) test::check_lead_up("cpu", numerics);
}

}  // namespace
}  // namespace moe_diag
