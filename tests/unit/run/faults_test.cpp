// SPDX-License-Identifier: MIT
// Each fault is found at exactly its site on a lane that is fed the oracle's inputs; without faults nothing is found.
#include <fmt/format.h>

#include "core/verdict/controls.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/small_contract.hpp"

namespace moe_diag {
namespace {

const std::string step_error = R"(
  - {id: ERROR, claim: steps are right, lane: step, stage: all, metric: rel_l2, at_most: 1e-5}
  - {id: ROUTING, claim: routing is right, lane: step, stage: moe_router_indices, metric: routing_flips, equals: 0}
)";

void check_found(const std::string& kind, Site site, const std::string& more = "") {
  const std::string layer = site.layer < 0 ? "" : fmt::format(", layer: {}", site.layer);
  const std::string fault =
      fmt::format("{{inject: {}, stage: {}{}{}, lane: step}}", kind, name_of(site.stage), layer, more);
  INFO(fault);
  const Verdict verdict = judge_text(contract_text(step_error), {}, {fault});
  const bool routing = site.stage == Stage::moe_router_indices;
  const Judgement* first = verdict.first_divergence();
  REQUIRE(first);
  CHECK(first->spec->id == (routing ? "ROUTING" : "ERROR"));
  CHECK(first->first_failing()->site == site);
  CHECK(first->outcome == Outcome::falsified);
  for (const Judgement& j : verdict.judgements)
    for (const SiteResult& s : j.sites) CHECK((s.failing > 0) == (s.site == site));
}

}  // namespace

TEST_CASE("nan and scale are found at exactly their site, at every stage") {
  for (const StageInfo& stage : stage_table) {
    if (stage.payload == Payload::indices) continue;
    for (int layer : {0, 1, 3}) {
      const Site site{stage.stage, stage.scope == Scope::model ? -1 : layer};
      check_found("nan", site);
      check_found("scale", site);
      check_found("scale", site, ", positions: last");
    }
  }
}

TEST_CASE("a wrong expert is found at exactly its site, at every stage it fits and every layer") {
  for (int layer = 0; layer < 4; ++layer)
    for (Stage stage : {Stage::moe_router_indices, Stage::moe_expert_gate, Stage::moe_expert_up, Stage::moe_expert_out})
      check_found("wrong_expert", {stage, layer});
}

TEST_CASE("without a fault everything holds, whatever the seed") {
  for (int seed = 0; seed < 50; ++seed) {
    const Verdict verdict = judge_text(contract_text(step_error, fmt::format("{{synthetic: tiny, seed: {}}}", seed),
                                                     fmt::format("[{}, {}, {}]", seed, seed * 7 % 512, 511 - seed)));
    INFO("seed " << seed);
    CHECK(verdict.count(Outcome::held) == 2);
    for (const Judgement& j : verdict.judgements) CHECK(j.samples > 0);
  }
}

TEST_CASE("on a free lane a fault is inherited by what follows, and first seen where it stands") {
  const Verdict verdict = judge_text(contract_text(R"(
  - {id: FREE, claim: finite, lane: free, stage: all, metric: nonfinite, equals: 0}
)"),
                                     {}, {"{inject: nan, stage: moe_expert_out, layer: 2, lane: free}"});
  const Judgement* first = verdict.first_divergence();
  REQUIRE(first);
  CHECK(first->first_failing()->site == Site{Stage::moe_expert_out, 2});
  CHECK(first->failing > 10);
  REQUIRE(verdict.tensors.size() == 1);
  CHECK(verdict.tensors[0] == "blk.2.ffn_down_exps.weight (Q6_K)");
}

}  // namespace moe_diag
