// SPDX-License-Identifier: MIT
// An earlier verdict as the baseline: what errs more than it did fails, though it is within its bound.
#include <string>

#include "core/report/report.hpp"
#include "core/run/baseline.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/small_contract.hpp"
#include "tests/support/temporary_folder.hpp"

namespace moe_diag {
namespace {

using Catch::Matchers::Contains;

const std::string claims = R"(
  - {id: CLOSE, claim: c, lane: step, stage: "moe_*", metric: rel_l2, at_most: 1e-2}
  - {id: ALIKE, claim: c, lane: step, stage: moe_ffn_out, metric: cosine_similarity, at_least: 0.9}
  - {id: SAME, claim: c, lane: step, stage: moe_router_indices, metric: routing_flips, equals: 0}
)";

EarlierVerdict earlier(const TemporaryFolder& folder, const Verdict& verdict) {
  const std::string path = folder / "verdict.json";
  write_text(path, json_report(verdict, "test"));
  return read_verdict(path);
}

}  // namespace

TEST_CASE("an error that grew is told by site, with both numbers, and one that did not is not") {
  const TemporaryFolder folder;
  const EarlierVerdict baseline = earlier(folder, judge_text(contract_text(claims)));
  Verdict same = judge_text(contract_text(claims));
  compare_with_baseline(same, baseline, 1.5);
  CHECK(same.moved.empty());
  CHECK_THAT(console_report(same, false), Contains("no error grew beyond it"));

  // 0.4 % at one stage: beyond 1e-3 of the bound, and within the bound.
  Verdict grown = judge_text(contract_text(claims), {},
                             {"{inject: scale, factor: 1.004, stage: moe_expert_out, layer: 2, lane: step}"});
  CHECK(grown.count(Outcome::falsified) == 0);
  compare_with_baseline(grown, baseline, 1.5);
  REQUIRE(grown.moved.size() == 1);
  const Moved& moved = grown.moved[0];
  CHECK(grown.judgements[moved.falsifier].spec->id == "CLOSE");
  CHECK(name_of(moved.site.stage) == "moe_expert_out");
  CHECK(moved.site.layer == 2);
  CHECK(moved.before < 1e-6);
  CHECK(moved.now == Approx(0.004).epsilon(0.01));
  const std::string text = console_report(grown, false);
  CHECK_THAT(text, Contains("WORSE: test"));
  CHECK_THAT(text, Contains("layer 2, moe_expert_out: rel_l2 is 0.004, and was"));
}

TEST_CASE("so much worse as is asked for") {
  const TemporaryFolder folder;
  const std::string scaled = "{inject: scale, factor: 1.002, stage: moe_expert_out, layer: 2, lane: step}";
  const EarlierVerdict baseline = earlier(folder, judge_text(contract_text(claims), {}, {scaled}));
  for (const double worse : {1.5, 3.0}) {
    Verdict verdict = judge_text(contract_text(claims), {},
                                 {"{inject: scale, factor: 1.004, stage: moe_expert_out, layer: 2, lane: step}"});
    compare_with_baseline(verdict, baseline, worse);
    CHECK(verdict.moved.size() == (worse < 2 ? 1 : 0));
  }
}

TEST_CASE("the verdict of another contract is no baseline") {
  const TemporaryFolder folder;
  const EarlierVerdict baseline = earlier(folder, judge_text(contract_text(claims)));
  Verdict other = judge_text(
      contract_text("  - {id: OTHER, claim: c, lane: step, stage: attn_out, metric: rel_l2, at_most: 1e-2}\n"));
  CHECK_THROWS_WITH(compare_with_baseline(other, baseline, 1.5), Contains("it has none of the 4 sites"));
}

}  // namespace moe_diag
