// SPDX-License-Identifier: MIT
// Four layers of the full width of Qwen3-30B-A3B, in the types of a Q4_K_M file: every step of f32 on the oracle's
// inputs.
#include "tests/support/catch.hpp"
#include "tests/support/small_contract.hpp"

namespace moe_diag {

TEST_CASE("f32 steps agree with the oracle at full width") {
  const Verdict verdict =
      judge_text(contract_text(R"(
  - {id: ERROR, claim: a, lane: step, stage: all, metric: rel_l2, at_most: 1e-5}
  - {id: ROUTING, claim: a, lane: step, stage: moe_router_indices, metric: routing_flips, equals: 0}
)",
                               "{synthetic: qwen3-30b-a3b, layers: 4, quant: q4_k_m, seed: 1}", "[785, 9217, 308]"));
  for (const Judgement& j : verdict.judgements) {
    INFO(j.spec->id << ": worst " << (j.worst() ? j.worst()->worst.value : -1));
    CHECK(j.outcome == Outcome::held);
  }
  CHECK(verdict.judgements[0].sites.size() == 22 * 4 + 3);
}

}  // namespace moe_diag
