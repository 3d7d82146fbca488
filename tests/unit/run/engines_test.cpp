// SPDX-License-Identifier: MIT
// Lanes that stand for engines with coarser types: sound ones raise no alarm, and a mistake is found beside the
// rounding.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "core/model/model.hpp"
#include "core/model/synthetic.hpp"
#include "core/ops/variant.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/lockstep.hpp"
#include "tests/support/small_contract.hpp"
#include "tests/support/stages.hpp"
#include "tests/support/temporary_folder.hpp"

namespace moe_diag {
namespace {

const std::string claims = R"(
  - {id: STEPS, claim: steps are as right as their types let them be, lane: step, stage: all, metric: noise_ratio, floor: expected, at_most: 10}
  - {id: ROUTING, claim: the choice follows from the logits, lane: step, stage: moe_router_indices, metric: routing_real_flips, equals: 0}
)";

// The engine's keys go to the lane that is fed by the oracle; `oracle`: keys that the oracle has, too.
std::string contract(const std::string& engine, const std::string& oracle = "",
                     const std::string& model = "{synthetic: tiny, seed: 7}",
                     const std::string& tokens = "[3, 141, 59, 26, 5, 358]") {
  std::string text = contract_text(claims, model, tokens);
  const auto replace = [&](const std::string& what, const std::string& by) {
    const std::size_t at = text.find(what);
    REQUIRE(at != std::string::npos);
    text.replace(at, what.size(), by);
  };
  replace("inputs: truth}", "inputs: truth, " + engine + "}");
  if (!oracle.empty()) replace("numerics: f64}", "numerics: f64, " + oracle + "}");
  return text;
}

Verdict judge(const std::string& text, const std::vector<std::string>& faults = {}) {
  static ModelCache models;
  RunOptions options;
  options.models = &models;
  return judge_text(text, options, faults);
}

std::string alarms(const Verdict& verdict) {
  std::string text;
  for (const Judgement& j : verdict.judgements)
    if (j.outcome != Outcome::held) {
      const Sample& s = j.leading_failure() ? j.leading_failure()->first_failing : Sample{};
      text += fmt::format("{} at {} of layer {}: {}; ", j.spec->id, name_of(s.site.stage), s.site.layer, s.value);
    }
  return text;
}

const std::vector<std::string> engines = {"stored: hf",
                                          "stored: vllm",
                                          "stored: bf16",
                                          "stored: f16",
                                          "reads: q8_k",
                                          "reads: fp8_128",
                                          "reads: nvfp4",
                                          "reads: {fp8_static: 0.1}",
                                          "weights: bf16",
                                          "weights: fp8_block",
                                          "reads: fp8_128, weights: fp8_block, accumulator: fp8_tensor_core",
                                          "reads: fp8_128_pow2, weights: fp8_block_pow2, stored: vllm",
                                          "kv_cache: f16",
                                          "kv_cache: q8_0",
                                          "kv_cache: q4_0",
                                          "kv_cache: q4_0, kv_rotate: hadamard",
                                          "kv_cache: fp8_e4m3",
                                          "stored: hf, reads: q8_0, kv_cache: f16",
                                          "stored: {moe_expert_out: f16, attn_softmax: bf16}"};

// Multiplies values of an F32 tensor in a model file.
void multiply(const std::string& path, const std::string& tensor, std::size_t first, std::size_t count, float factor) {
  const Model model = Model::open(path);
  const auto weights = model.view().weights;
  const auto weight = std::find_if(weights.begin(), weights.end(), [&](const Weight& w) { return w.name == tensor; });
  REQUIRE(weight != weights.end());
  REQUIRE(weight->type == BlockType::f32);
  std::vector<float> values(count);
  std::memcpy(values.data(), weight->data + first * sizeof(float), count * sizeof(float));
  for (float& v : values) v *= factor;
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(static_cast<std::streamoff>(model.place_of(*weight).offset + first * sizeof(float)));
  file.write(reinterpret_cast<const char*>(values.data()), static_cast<std::streamsize>(count * sizeof(float)));
}

}  // namespace

TEST_CASE("a sound engine raises no alarm where scores are large, and activations massive") {
  const TemporaryFolder folder;
  const std::string path = folder / "bent.gguf";
  write_synthetic({"tiny", 0, "q4_k_m", 7}, path);
  multiply(path, "blk.1.attn_q_norm.weight", 0, 64, 6);  // scores of 40 and more
  multiply(path, "blk.2.ffn_norm.weight", 7, 1, 150);    // one channel of 150
  {
    test::Lockstep lockstep(Model::open(path), {test::lane_spec("truth", {{"numerics", "f64"}})}, 6);
    const test::Recorder seen = lockstep.record({3, 141, 59, 26, 5, 358});
    const auto largest = [&](Stage stage, int layer) {
      const host::Values values = host::values_of(seen.all().at({0, {stage, layer}}).tensor());
      return *std::max_element(values.begin(), values.end());
    };
    CHECK(largest(stages::attn_scores, 1) > 40);
    CHECK(largest(stages::ffn_norm, 2) > 100);
    CHECK(largest(stages::moe_router_logits, 2) > 20);
  }
  for (const std::string& engine : engines) {
    if (engine.find("fp8_static") != std::string::npos) continue;  // its scale is not made for such values
    INFO(engine);
    CHECK(alarms(judge(contract(engine, "", "{gguf: " + path + "}"))) == "");
  }
}

TEST_CASE("a sound engine raises no alarm, whatever it rounds to") {
  for (const std::string& engine : engines)
    for (const int seed : {1, 7})
      for (const std::string quant : {"q4_k_m", "q8_0"}) {
        const std::string model = fmt::format("{{synthetic: tiny, quant: {}, seed: {}}}", quant, seed);
        INFO(engine << ", " << model);
        CHECK(alarms(judge(contract(engine, "", model))) == "");
      }
}

TEST_CASE("a sound engine raises no alarm beside an oracle that rounds as it does") {
  for (const std::string& engine : engines) {
    INFO(engine);
    CHECK(alarms(judge(contract(engine, engine))) == "");
  }
}

TEST_CASE("a lane in a named variant differs from the model's definition, and the report names the variant") {
  std::string tokens = "[3";  // as many as it takes until angles in f32 differ from those in double
  for (int i = 1; i < 160; ++i) tokens += fmt::format(", {}", i * 37 % 500);
  tokens += "]";
  const std::string model = "{synthetic: tiny, seed: 7, layers: 1}";
  for (const std::string& name : variant_names("rope_angles")) {
    const std::string engine = "variant: {rope_angles: " + name + "}";
    INFO(engine);
    CHECK(alarms(judge(contract(engine, engine, model, tokens))) == "");
    const Verdict verdict = judge(contract(engine, "", model, tokens));
    REQUIRE(verdict.first_divergence());
    CHECK_THAT(std::string(name_of(verdict.first_divergence()->leading_failure()->site.stage)),
               Catch::Matchers::EndsWith("_post_rope"));
    REQUIRE_FALSE(verdict.diagnosis.divergences.empty());
    for (const Divergence& d : verdict.diagnosis.divergences) {
      CHECK(name_of(d.cause) == "variant");
      CHECK_THAT(d.text, Catch::Matchers::Contains(engine));
    }
  }
}

TEST_CASE("a variant that no step of the model has is refused, and one of a base is the lane's own") {
  const std::string engine = "variant: {renormalisation: clamped}";
  CHECK(alarms(judge(contract(engine))) == "");  // the sum of the best experts is never so small
  CHECK_THROWS_WITH(judge(contract(engine, "", "{synthetic: tiny-qwen2moe, seed: 7}")),
                    Catch::Matchers::Contains("variant: renormalisation: no step of this model has such a form"));
}

TEST_CASE("a mistake is found beside an engine's rounding") {
  struct Case {
    const char *fault, *stage, *cause;
  };
  for (const std::string engine : {"stored: hf", "stored: vllm", "stored: bf16, kv_cache: q8_0"})
    for (const Case& c :
         {Case{"{inject: scale, stage: moe_expert_out, layer: 2, lane: step, factor: 1.5}", "moe_expert_out", "scale"},
          Case{"{inject: skip_norm, stage: ffn_norm, layer: 2, lane: step}", "ffn_norm", "skipped"},
          Case{"{inject: wrong_expert, stage: moe_expert_up, layer: 1, lane: step}", "moe_expert_up", "wrong_tensor"},
          Case{"{inject: rope_interleaved, stage: q_post_rope, layer: 3, lane: step}", "q_post_rope", "permutation"},
          Case{"{inject: transpose, stage: moe_expert_gate, layer: 0, lane: step}", "moe_expert_gate", "transposed"}}) {
      const Verdict verdict = judge(contract(engine), {c.fault});
      INFO(engine << ", " << c.fault);
      REQUIRE(verdict.diagnosis.divergences.size() == 1);
      CHECK(name_of(verdict.diagnosis.divergences[0].site.stage) == c.stage);
      CHECK(name_of(verdict.diagnosis.divergences[0].cause) == c.cause);
    }
}

TEST_CASE("an oracle that reads as the engine does sees a mistake that the plain one cannot") {
  const std::string fault = "{inject: scale, stage: moe_expert_out, layer: 2, lane: step, factor: 1.02}";
  CHECK(alarms(judge(contract("reads: fp8_128"), {fault})) == "");
  CHECK(alarms(judge(contract("reads: fp8_128", "reads: fp8_128"), {fault})) != "");
}

TEST_CASE("what an engine rounds to is said with the lane") {
  const Verdict verdict = judge(contract("stored: hf, reads: q8_0, kv_cache: f16"));
  CHECK(verdict.lanes[2].engine == "reads q8_0, stored as hf, a KV cache in f16");
  CHECK(verdict.lanes[0].engine == "");
  const auto said = [](const std::string& engine) { return judge(contract(engine)).lanes[2].engine; };
  CHECK(said("reads: {fp8_static: 0.02}") == "reads fp8_static with a scale of 0.02");
  CHECK(said("reads: {fp8_static: {all: 0.02, attention: 0.01}}") == "reads fp8_static with scales by stage");
}

}  // namespace moe_diag
