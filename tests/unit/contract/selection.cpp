// SPDX-License-Identifier: MIT
#include "core/contract/selection.hpp"

#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag {
namespace {

std::vector<int> picked(const std::string& text, int count) { return IndexSelection::parse(text, true).resolve(count); }

std::vector<int> from_to(int first, int last) {
  std::vector<int> v(static_cast<std::size_t>(last - first + 1));
  std::iota(v.begin(), v.end(), first);
  return v;
}

TEST_CASE("the forms of an index selection") {
  CHECK(picked("all", 4) == from_to(0, 3));
  CHECK(picked("ALL", 1) == from_to(0, 0));
  CHECK(picked("last", 4) == from_to(3, 3));
  CHECK(picked("7", 8) == from_to(7, 7));
  CHECK(picked("-1", 8) == from_to(7, 7));
  CHECK(picked("-8", 8) == from_to(0, 0));
  CHECK(picked("0..48", 48) == from_to(0, 47));
  CHECK(picked("0..=47", 48) == from_to(0, 47));
  CHECK(picked("3..", 6) == from_to(3, 5));
  CHECK(picked("-2..", 6) == from_to(4, 5));
  CHECK(picked("1..-1", 6) == from_to(1, 4));
  CHECK(picked("-3..=-2", 6) == from_to(3, 4));
}

TEST_CASE("a list of selections is ascending and without repeats") {
  IndexSelection s = IndexSelection::parse("5", true);
  s.append(IndexSelection::parse("0..3", true));
  s.append(IndexSelection::parse("-4..=2", true));
  CHECK(s.text() == "5, 0..3, -4..=2");
  CHECK(s.resolve(6) == std::vector<int>{0, 1, 2, 5});
}

TEST_CASE("what is no index selection is refused with the right forms") {
  for (const std::string text : {"",   "x",  "010", "-01", "0-4", "1.5",         "0...3", "..3",   "..",   "1..=",
                                 "+1", " 1", "1 ",  "0x1", "1e3", "99999999999", "-",     "first", "3..x", "0,1"}) {
    INFO(text);
    CHECK_THROWS_WITH(IndexSelection::parse(text, true), Catch::Matchers::Contains("0..48 (48 excluded)"));
  }
  for (const std::string text : {"5..5", "5..3", "5..=4", "-1..-1", "-1..-3"})
    CHECK_THROWS_WITH(IndexSelection::parse(text, true), Catch::Matchers::Contains("is empty"));
  CHECK_THROWS_WITH(IndexSelection::parse("last", false), Catch::Matchers::Contains("the last layer is -1"));
}

TEST_CASE("what reaches outside names the part and what there is") {
  CHECK_THROWS_WITH(picked("99", 48), Catch::Matchers::Contains("99 reaches outside: there are 48, numbered 0 to 47"));
  CHECK_THROWS_WITH(picked("0..=48", 48), Catch::Matchers::Contains("0..=48 reaches outside"));
  CHECK_THROWS_WITH(picked("-49", 48), Catch::Matchers::Contains("-49 reaches outside"));
  CHECK_THROWS_WITH(picked("48..", 48), Catch::Matchers::Contains("48.. reaches outside"));
  CHECK_THROWS_WITH(picked("3..-3", 6), Catch::Matchers::Contains("3..-3 is empty when there are 6"));
  CHECK_THROWS_AS(picked("all", 0), std::out_of_range);
  CHECK_THROWS_AS(picked("0..1000000000", 4), std::out_of_range);
}

TEST_CASE("what is known without the count") {
  const auto s = [](const std::string& text) { return IndexSelection::parse(text, true); };
  CHECK(s("all").contains(1000) == true);
  CHECK(s("0..4").contains(3) == true);
  CHECK(s("0..4").contains(4) == false);
  CHECK(s("0..=4").contains(4) == true);
  CHECK(s("3..").contains(2) == false);
  CHECK(s("-1").contains(2) == std::nullopt);
  CHECK(s("1..-1").contains(2) == std::nullopt);
  CHECK(s("0..4").highest() == 3);
  CHECK(s("7").highest() == 7);
  CHECK(s("all").highest() == std::nullopt);
  CHECK(s("-1").highest() == std::nullopt);
}

TEST_CASE("stages by name, alias, glob and all, in any case") {
  using Stages = std::vector<Stage>;
  CHECK(pick_stages("moe_ffn_out", qwen3moe.stages).stages == Stages{stages::moe_ffn_out});
  CHECK(pick_stages("MOE_Router", qwen3moe.stages).stages == Stages{stages::moe_router_weights});
  CHECK(pick_stages("layer_output", qwen3moe.stages).stages == Stages{stages::post_ffn_residual});
  CHECK(pick_stages("moe_expert_swigl", qwen3moe.stages).named);
  CHECK(pick_stages("all", qwen3moe.stages).stages.size() == qwen3moe.stages.size());
  CHECK_FALSE(pick_stages("all", qwen3moe.stages).named);
  CHECK(pick_stages("MOE_router_*", qwen3moe.stages).stages ==
        Stages{stages::moe_router_logits, stages::moe_router_probs, stages::moe_router_indices,
               stages::moe_router_weights});
  CHECK(pick_stages("?_norm", qwen3moe.stages).stages == Stages{stages::q_norm, stages::k_norm});
  CHECK(pick_stages("*residual", qwen3moe.stages).stages ==
        Stages{stages::post_attn_residual, stages::post_ffn_residual});
  CHECK(pick_stages("*", qwen3moe.stages).stages.size() == qwen3moe.stages.size());
  CHECK(pick_stages("*e*e*e*_*t", qwen3moe.stages).stages == Stages{stages::moe_expert_out});
  CHECK_THROWS_WITH(pick_stages("moe_fnn_out", qwen3moe.stages),
                    Catch::Matchers::Contains("did you mean 'moe_ffn_out'?"));
  CHECK_THROWS_WITH(pick_stages("moe_shared_out", qwen3moe.stages),
                    Catch::Matchers::Contains("the model's architecture has no stage 'moe_shared_out'. It has: emb"));
  CHECK_THROWS_WITH(pick_stages("moo*", qwen3moe.stages), Catch::Matchers::Contains("no stage is called like 'moo*'"));
}

}  // namespace
}  // namespace moe_diag
