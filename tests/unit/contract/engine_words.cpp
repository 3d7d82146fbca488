// SPDX-License-Identifier: MIT
// The words of a lane about its engine mean the same when a contract is written and read again.
#include <string>
#include <string_view>

#include "core/contract/contract.hpp"
#include "core/contract/contract_writer.hpp"
#include "tests/support/catch.hpp"

namespace moe_diag {
namespace {

Contract with_words(const std::string& words) {
  return parse_contract(R"(
metadata: {id: test, version: 1.0.0, description: made by a test}
model: {gguf: model.gguf}
prompts: [{id: short, tokens: [3, 141, 59]}]
oracle: truth
lanes:
  truth: {backend: cpu, numerics: f64, )" +
                            words + R"(}
falsifiers:
  - {id: SAME, claim: none, lane: truth, stage: all, metric: nonfinite, equals: 0}
)",
                        "test.yaml");
}

}  // namespace

TEST_CASE("what a lane says of its engine is the same when it is written and read again") {
  for (const std::string words : {"reads: fp8_128, weights: fp8_block, accumulator: fp8_tensor_core, stored: vllm",
                                  "reads: {fp8_static: 0.02}", "reads: {nvfp4: {all: 0.02, moe_expert_swiglu: 0.5}}",
                                  "stored: {moe_expert_out: f16}, kv_cache: q4_0, kv_rotate: hadamard"}) {
    const Contract contract = with_words(words);
    const EngineNumerics& engine = contract.lanes[0].engine;
    const std::string text = written(contract, "written by a test");
    INFO(words << "\n" << text);
    CHECK_FALSE(engine.empty());
    CHECK(parse_contract(text, "written.yaml").lanes[0].engine == engine);
  }
}

TEST_CASE("scales of activations are given to all stages, or by stage, of which the last word counts") {
  const auto scale = [](const Contract& contract, std::string_view stage) {
    return scale_of(contract.lanes[0].engine, contract.stages.find(stage));
  };
  const Contract all = with_words("reads: {fp8_static: 0.02}");
  CHECK(all.lanes[0].engine.reads == "fp8_static");
  CHECK(common_scale(all.lanes[0].engine) == 0.02F);
  CHECK(scale(all, "ffn_norm") == 0.02F);
  CHECK(scale(all, "moe_router_indices") == 0);
  const Contract some = with_words("reads: {fp8_static: {all: 0.02, attention: 0.5}}");
  CHECK(scale(some, "attention") == 0.5F);
  CHECK(scale(some, "ffn_norm") == 0.02F);
  CHECK_FALSE(common_scale(some.lanes[0].engine));
  const Contract one = with_words("reads: {nvfp4: {attention: 0.5}}");
  CHECK(scale(one, "ffn_norm") == 0);
  CHECK_FALSE(common_scale(one.lanes[0].engine));
}

}  // namespace moe_diag
