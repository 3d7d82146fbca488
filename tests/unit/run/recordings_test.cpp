// SPDX-License-Identifier: MIT
// Recordings are judged by what they had themselves. Here a lane of this project is the engine: captured once with a
// mistake and once without, it is a recording like another.
#include <fmt/format.h>

#include <set>
#include <string>
#include <vector>

#include "core/run/open_model.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/explained.hpp"
#include "tests/support/small_contract.hpp"
#include "tests/support/stages.hpp"
#include "tests/support/temporary_folder.hpp"

namespace moe_diag {
namespace {

using Catch::Matchers::Contains;

const std::string all_but_keys =
    "[embedding, attn_norm, qkv_matmul, q_norm, k_norm, q_post_rope, k_post_rope, "
    "attention, attn_out, post_attn_residual, ffn_norm, \"moe_*\", post_ffn_residual, "
    "final_norm, lm_head]";
const std::string tokens = "[3, 141, 59, 26, 53, 7, 400, 12, 99, 310, 17, 42]";

// Captures the engine, which has that mistake; empty: none. Gives the recording's folder.
std::string record(const TemporaryFolder& folder, const std::string& fault, const std::string& stages = "all",
                   const std::string& engine = "numerics: f32") {
  const std::string text = fmt::format(R"(
metadata: {{id: engine, version: 1.0.0, description: made by a test}}
model: {{synthetic: tiny, seed: 7}}
prompts: [{{id: short, tokens: {}}}]
lanes:
  engine: {{backend: cpu, {}}}
sinks: {{dump: {{sink: npy, dir: dump}}}}
capture: [{{stages: {}, layers: all, positions: all, lanes: all, to: [dump]}}]
)",
                                       tokens, engine, stages);
  static int count = 0;
  RunOptions options;
  options.out = folder / std::to_string(count++);
  std::vector<std::string> faults;
  if (!fault.empty()) faults.push_back(fmt::format("{{inject: {}, lane: engine}}", fault));
  const Verdict verdict = judge_text(text, options, faults);
  REQUIRE(verdict.failure == "");
  return options.out + "/dump";
}

const std::string claims = R"(
  - {id: FINITE, claim: c, lane: engine, stage: recorded, metric: nonfinite_beyond, equals: 0}
  - {id: STEPS, claim: c, lane: engine, stage: recorded, metric: noise_ratio, floor: expected, at_most: 10}
  - {id: ROUTING, claim: c, lane: engine, stage: moe_router_indices, metric: routing_real_flips, equals: 0}
)";
const std::string spans = R"(
  - {id: SPANS, claim: c, lane: engine, stage: recorded, metric: noise_ratio, floor: peer, at_most: 10}
)";

std::string contract(const std::string& dump, const std::string& falsifiers,
                     const std::string& engine = "numerics: f32") {
  return fmt::format(R"(
metadata: {{id: judge, version: 1.0.0, description: made by a test}}
model: {{synthetic: tiny, seed: 7}}
prompts: [{{recording: engine}}]
oracle: judge
lanes:
  engine: {{replay: "{}", {}}}
  judge: {{backend: cpu, numerics: f64, inputs: engine, as: engine}}
  peer: {{backend: cpu, numerics: f32, inputs: engine, as: engine}}
falsifiers:
{})",
                     dump, engine, falsifiers);
}

Verdict judge_recording(const std::string& text, RunOptions options = {}) {
  static std::vector<std::unique_ptr<Contract>> contracts;  // verdicts point into them
  static ModelCache models;
  options.models = &models;
  contracts.push_back(std::make_unique<Contract>(parse_contract(text, "test.yaml")));
  resolve_recordings(*contracts.back(), &models);
  PluginHost host({MOE_DIAG_PLUGINS});
  return run_contract(*contracts.back(), host, options);
}

std::string failures(const Verdict& verdict) {
  std::string text = verdict.failure;
  for (const Judgement& j : verdict.judgements)
    if (j.outcome != Outcome::held) {
      const Sample s = j.leading_failure() ? j.leading_failure()->first_failing : Sample{};
      text += fmt::format("{} is {}: {} {} at position {}: {}; ", j.spec->id, name_of(j.outcome), j.reason,
                          j.leading_failure() ? text_of(s.site) : "", s.position, s.value);
    }
  return text;
}

}  // namespace

TEST_CASE("the recording of a sound engine is held, whatever it stores") {
  const TemporaryFolder folder;
  for (const std::string engine : {"numerics: f32", "numerics: f32, stored: hf", "numerics: f32, kv_cache: f16"}) {
    INFO(engine);
    const std::string dump = record(folder, "", "all", engine);
    const Verdict verdict = judge_recording(contract(dump, claims + spans, engine));
    CHECK(failures(verdict) == "");
    CHECK(verdict.judgements[1].samples > 500);
    CHECK(verdict.prompts.size() == 1);
    CHECK(verdict.contract->prompts[0].tokens.size() == 12);
  }
}

TEST_CASE("a mistake of a recorded engine is found at its step, and called by its name") {
  struct Planted {
    const char *fault, *site, *cause;
  };
  const TemporaryFolder folder;
  for (const Planted& c : {
           Planted{"scale, factor: 1.05, stage: moe_expert_out, layer: 2", "layer 2, moe_expert_out", "scale"},
           {"gate_up, stage: moe_expert_swiglu, layer: 1", "layer 1, moe_expert_swiglu", "permutation"},
           {"renormalisation, stage: moe_router_weights, layer: 3", "layer 3, moe_router_weights", "skipped"},
           {"wrong_type, stage: moe_expert_up, layer: 1", "layer 1, moe_expert_up", "wrong_type"},
           {"rope_theta, stage: q_post_rope, layer: 1, theta: 10000", "layer 1, q_post_rope", "rope_theta"},
           {"window, stage: attn_softmax, layer: 1", "layer 1, attention", "window"},
           {"norm, stage: ffn_norm, layer: 0", "layer 0, ffn_norm", "function"},
           {"nan, stage: moe_expert_out, layer: 2", "layer 2, moe_expert_out", "nonfinite_origin"},
       }) {
    INFO(c.fault);
    const bool needs_scores = std::string(c.fault).starts_with("window");
    const std::string dump = record(folder, c.fault, needs_scores ? "all" : all_but_keys);
    const Verdict verdict = judge_recording(contract(dump, claims));
    INFO(failures(verdict));
    REQUIRE(verdict.first_divergence());
    REQUIRE_FALSE(verdict.diagnosis.divergences.empty());
    const Divergence& d = verdict.diagnosis.divergences.front();
    INFO(text_of(d.site) << ": " << name_of(d.cause) << " " << d.text);
    const std::string site = needs_scores ? "layer 1, attn_softmax" : c.site;
    CHECK(text_of(d.site) == site);
    CHECK(name_of(d.cause) == c.cause);
    CHECK(verdict.diagnosis.divergences.size() == 1);
    CHECK_THAT(d.recorded,
               Contains(std::string(name_of(d.site.stage)) + ".npy, byte ") && Contains("call 0 of 12 rows"));
  }
}

TEST_CASE("numerics and the type of the cache are found from what is recorded") {
  const TemporaryFolder folder;
  for (const std::string& engine : {std::string("numerics: q8_k, kv_cache: f16"), std::string("numerics: bf16"),
                                    std::string("numerics: f32, reads: bf16, kv_cache: q8_0")}) {
    INFO(engine);
    const std::string dump = record(folder, "", all_but_keys, engine);
    const Verdict verdict = judge_recording(contract(dump, claims + spans, "numerics: auto"));
    CHECK(failures(verdict) == "");
    const bool has_cache = engine.find("kv_cache") != std::string::npos;
    CHECK((verdict.lanes[0].engine.find("a KV cache in") != std::string::npos) == has_cache);
  }
  const std::string dump = record(folder, "", all_but_keys, "numerics: q8_k, kv_cache: f16");
  CHECK_THAT(
      judge_recording(contract(dump, claims + spans, "numerics: q8_k")).failure,
      Contains("nothing is said of the engine's KV cache: a KV cache in f16 fits") && Contains("say kv_cache: f16"));
  // A mistake in attention is none of the cache.
  const std::string wrong =
      record(folder, "scale, factor: 1.1, stage: attention, layer: 2", all_but_keys, "numerics: f32");
  CHECK_THAT(failures(judge_recording(contract(wrong, claims + spans, "numerics: f32"))),
             !Contains("KV cache") && Contains("attention"));
  const std::string little = record(folder, "", "[post_ffn_residual]", "numerics: f32");
  CHECK_THROWS_WITH(judge_recording(contract(little, claims, "numerics: auto")),
                    Contains("numerics: auto: no matmul is recorded together with its input"));
}

TEST_CASE("where a recording has gaps, several steps are judged at once beside a peer") {
  const TemporaryFolder folder;
  const std::string some = "[ffn_norm, moe_router_logits, moe_router_indices, moe_ffn_out, post_ffn_residual]";
  CHECK(failures(judge_recording(contract(record(folder, "", some), claims + spans))) == "");
  const std::string dump = record(folder, "scale, factor: 1.2, stage: moe_expert_up, layer: 2", some);
  const Verdict verdict = judge_recording(contract(dump, claims + spans));
  INFO(failures(verdict));
  REQUIRE(verdict.first_divergence());
  CHECK(verdict.first_divergence()->spec->id == "SPANS");
  REQUIRE(verdict.diagnosis.divergences.size() == 1);
  const Divergence& d = verdict.diagnosis.divergences.front();
  CHECK(text_of(d.site) == "layer 2, moe_ffn_out");
  CHECK(name_of(d.cause) == "operator");
  CHECK_THAT(d.text, Contains("to moe_ffn_out") && Contains("record moe_expert_"));
}

TEST_CASE("one step is not held against the rounding of several") {
  const TemporaryFolder folder;
  const std::string dump = record(folder, "", "[moe_router_indices, post_ffn_residual]");
  const Verdict verdict = judge_recording(contract(dump, claims.substr(0, claims.find("  - {id: ROUTING")) + spans));
  CHECK(verdict.judgements[1].outcome == Outcome::untested);
  CHECK_THAT(verdict.judgements[1].reason, Contains("several steps"));
  CHECK(verdict.judgements[2].outcome == Outcome::held);
}

TEST_CASE("a control rewrites recorded rows, and has to be found there") {
  const TemporaryFolder folder;
  RunOptions options;
  options.controls = true;
  const Verdict verdict = judge_recording(
      contract(
          record(folder, "", all_but_keys),
          "  - {id: FINITE, claim: c, lane: engine, stage: recorded, metric: nonfinite_beyond, equals: 0, "
          "controls: [{inject: nan, stage: moe_expert_out, layer: 2}]}\n"
          "  - {id: STEPS, claim: c, lane: engine, stage: recorded, metric: noise_ratio, floor: expected, at_most: "
          "10, controls: [{inject: scale, factor: 1.1, stage: attn_out, layer: 1}]}\n"),
      options);
  CHECK(failures(verdict) == "");
  for (const Judgement& j : verdict.judgements) {
    REQUIRE(j.controls.size() == 1);
    CHECK(j.controls[0].tripped);
  }
}

TEST_CASE("a recording whose rows name an expert twice is refused") {
  const TemporaryFolder folder;
  const std::string dump = record(folder, "duplicate_ids, stage: moe_router_indices, layer: 1", all_but_keys);
  CHECK_THROWS_WITH(judge_recording(contract(dump, claims)), Contains("expected each once"));
}

TEST_CASE("a recording that is absent leaves its claims untested, one that lacks what is required is refused") {
  const TemporaryFolder folder;
  const Verdict absent = judge_recording(contract(folder / "nothing", claims));
  for (const Judgement& j : absent.judgements) CHECK(j.outcome == Outcome::untested);
  CHECK_THAT(absent.judgements[0].reason, Contains("nothing"));
  const std::string dump = record(folder, "", "[ffn_norm]");
  CHECK_THROWS_WITH(judge_recording(contract(dump, claims, "numerics: f32, require: [ffn_norm, moe_ffn_out]")),
                    Contains("has no moe_ffn_out; it has ffn_norm"));
}

}  // namespace moe_diag
