// SPDX-License-Identifier: MIT
#include <string>

#include "core/contract/contract.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag {
namespace {

const std::string path = std::string(MOE_DIAG_SOURCE_DIR) + "/contracts/quickstart.yaml";

TEST_CASE("the quickstart contract is read whole") {
  const Contract c = read_contract(path);
  CHECK(c.metadata.id == "quickstart");
  CHECK(c.metadata.version == "1.0.0");
  CHECK(c.metadata.references.empty());
  CHECK(c.model.synthetic == "tiny");
  CHECK(c.model.seed == 7);
  CHECK(c.model.gguf.empty());
  REQUIRE(c.prompts.size() == 2);
  CHECK(c.prompts[0].tokens == std::vector<std::int32_t>{3, 141, 59});
  CHECK(c.oracle == "truth");
  REQUIRE(c.lanes.size() == 3);
  CHECK(c.lanes[2].name == "step");
  CHECK(c.lanes[2].inputs == "truth");
  CHECK(c.lanes[2].options.entry("numerics")->value == "f32");
  REQUIRE(c.capture.size() == 1);
  CHECK(c.capture[0].stages.stages == std::vector<Stage>{stages::moe_router_logits, stages::moe_router_probs,
                                                         stages::moe_router_indices, stages::moe_router_weights,
                                                         stages::moe_ffn_out, stages::lm_head});
  CHECK(c.capture[0].lanes == std::vector<std::string>{"truth", "f32", "step"});
  CHECK(c.capture[0].positions.resolve(8) == std::vector<int>{7});
  REQUIRE(c.sinks.size() == 2);
  CHECK(c.sinks[0].sink == "npy");
  CHECK(c.sinks[0].options.entry("dir")->value == "dump");
  CHECK(c.falsifiers.size() == 6);
}

TEST_CASE("the quickstart's first falsifier looks at every stage of values") {
  const Contract c = read_contract(path);
  const FalsifierSpec& f = c.falsifiers.at(0);
  CHECK(f.id == "STEP-ERROR");
  CHECK(f.against == "truth");
  CHECK(f.metric == Metric::rel_l2);
  CHECK(f.bound.kind == Bound::Kind::at_most);
  CHECK(f.bound.value == 1e-5);
  CHECK(f.stages.stages.size() == qwen3moe.stages.size() - 1);
  CHECK(f.prompts.empty());
  REQUIRE(f.controls.size() == 4);
  CHECK(f.controls[0].text == "nan at moe_expert_out, layer 2, element 5");
  CHECK(f.controls[0].lane == "step");
  CHECK(f.controls[1].text == "scale by 1.001 at attn_out, layer 1");
  CHECK(f.controls[1].factor == 1.001);
  CHECK(f.controls[3].text == "scale by 0.999 at lm_head, positions last");
  CHECK(f.controls[3].layer == -1);
}

TEST_CASE("a metric that looks at one lane is compared with none") {
  const Contract c = read_contract(path);
  CHECK(c.falsifiers.at(2).metric == Metric::nonfinite_beyond);
  CHECK(c.falsifiers.at(2).against == "truth");
  CHECK(c.falsifiers.at(3).metric == Metric::router_sum_error);
  CHECK(c.falsifiers.at(3).against.empty());
}

TEST_CASE("places are those of the file") {
  const Contract c = read_contract(path);
  CHECK(c.at(c.model.where) == path + ":16:8");
}

}  // namespace
}  // namespace moe_diag
