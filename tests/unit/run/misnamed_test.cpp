// SPDX-License-Identifier: MIT
// Lanes that name an expert twice, or one that the model does not have.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "core/report/junit.hpp"
#include "core/report/report.hpp"
#include "core/report/text.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/small_contract.hpp"

namespace moe_diag {
namespace {

using Catch::Matchers::Contains;

// Lanes `odd` and `twin` of that mood, and lane `even`, which names its experts well.
Verdict judge_mood(const std::string& mood, const std::string& lane = "odd", const std::string& against = "even") {
  std::string claims;
  const auto claim = [&](const std::string& id, const std::string& stage, const std::string& metric) {
    claims += fmt::format("  - {{id: {}, claim: agrees, lane: {}, against: {}, stage: {}, layers: 1, metric: {}}}\n",
                          id, lane, against, stage, metric);
  };
  claim("FLIPS", "moe_router_indices", "routing_flips, equals: 0");
  claim("VALUES", "moe_expert_out", "rel_l2, at_most: 0");
  claim("WEIGHTS", "moe_router_weights", "rel_l2, at_most: 0");
  claim("FINITE", "moe_expert_out", "nonfinite_beyond, equals: 0");
  std::string text = contract_text(claims, "{synthetic: tiny, seed: 7}", "[3, 141, 59, 26]");
  text.replace(text.find("  free:"), 0,
               fmt::format("  odd: {{backend: bad, numerics: f32, mood: {0}}}\n"
                           "  twin: {{backend: bad, numerics: f32, mood: {0}}}\n"
                           "  even: {{backend: bad, numerics: f32}}\n",
                           mood));
  return judge_text(text, {}, {}, {std::string(MOE_DIAG_BAD_PLUGINS) + "/misnaming_lane", MOE_DIAG_PLUGINS});
}

const Judgement& of(const Verdict& verdict, const std::string& id) {
  for (const Judgement& j : verdict.judgements)
    if (j.spec->id == id) return j;
  FAIL("no falsifier " << id);
  return verdict.judgements.front();
}

}  // namespace

TEST_CASE("a faulty id is one flip with a name in every report, and its slot is compared with nothing") {
  const std::vector<std::pair<std::string, std::string>> moods = {
      {"twice", "expert 1 is named twice, expert 3 is missing"},
      {"negative", "expert -1 does not exist (the model has experts 0 to 11), expert 3 is missing"},
      {"beyond", "expert 12 does not exist (the model has experts 0 to 11), expert 3 is missing"}};
  for (const auto& [mood, text] : moods) {
    INFO(mood);
    const Verdict verdict = judge_mood(mood);
    REQUIRE(verdict.failure.empty());
    const Judgement& flips = of(verdict, "FLIPS");
    CHECK(flips.outcome == Outcome::falsified);
    CHECK(flips.samples == 4);
    CHECK(flips.failing == 1);
    REQUIRE(flips.worst());
    CHECK(flips.worst()->worst.value == 1);
    CHECK(flips.worst()->worst.position == 1);
    for (const std::string id : {"VALUES", "WEIGHTS", "FINITE"}) {
      INFO(id);
      CHECK(of(verdict, id).outcome == Outcome::held);
      CHECK(of(verdict, id).skipped_experts == 1);
    }
    CHECK(of(verdict, "VALUES").samples == 11);
    CHECK(of(verdict, "WEIGHTS").samples == 4);
    CHECK(of(verdict, "FINITE").samples == 12);

    CHECK_THAT(console_report(verdict, false), Contains("worst: " + text) && Contains("routing    " + text));
    CHECK_THAT(junit_report({&verdict, 1}, "0"), Contains(text));
    CHECK_THAT(reason_text(verdict, flips), Contains(text));
    const auto json = nlohmann::json::parse(json_report(verdict, "0"));
    const auto& flip = json["falsifiers"][0]["first_failing"]["flips"][0];
    CHECK(flip["text"] == text);
    CHECK(flip["margin"].is_null());
    CHECK(flip["logit_error"].is_null());
    CHECK(flip["kind"] == "real");
    CHECK(flip["instead_of"] == 3);
    CHECK(flip["fault"] == (mood == "twice" ? "named_twice" : "does_not_exist"));
    CHECK(flip["fault_of_other"].is_null());
    for (const auto& d : json["divergences"])
      if (!d["flip"].is_null()) CHECK((d["flip"]["margin"].is_null() || d["flip"]["margin"].is_number()));
  }
}

TEST_CASE("a faulty id of the lane that is compared with is a flip as well") {
  const Verdict verdict = judge_mood("twice", "even", "odd");
  REQUIRE(verdict.failure.empty());
  CHECK(of(verdict, "FLIPS").worst()->worst.value == 1);
  CHECK(of(verdict, "VALUES").outcome == Outcome::held);
  CHECK_THAT(console_report(verdict, false), Contains("worst: expert 3 is chosen; in the lane beside it, expert 1 is "
                                                      "named twice"));
}

TEST_CASE("an id that two lanes get wrong in the same way is no agreement") {
  const Verdict verdict = judge_mood("beyond", "odd", "twin");
  REQUIRE(verdict.failure.empty());
  CHECK(of(verdict, "FLIPS").outcome == Outcome::falsified);
  CHECK(of(verdict, "FLIPS").worst()->worst.value == 1);
  CHECK(of(verdict, "VALUES").outcome == Outcome::held);
  CHECK(of(verdict, "VALUES").samples == 11);
}

}  // namespace moe_diag
