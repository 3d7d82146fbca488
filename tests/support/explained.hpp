// SPDX-License-Identifier: MIT
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/verdict/controls.hpp"
#include "core/verdict/verdict.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/small_contract.hpp"

namespace moe_diag {

inline std::string claims_about(const std::string& lane) {
  return fmt::format(R"(
  - {{id: ERROR, claim: steps are right, lane: {0}, stage: all, metric: rel_l2, at_most: 1e-5}}
  - {{id: ROUTING, claim: routing is right, lane: {0}, stage: moe_router_indices, metric: routing_real_flips, equals: 0}}
  - {{id: LOGITS, claim: logits are right, lane: {0}, stage: lm_head, metric: cosine_similarity, at_least: 0.99999}}
)",
                     lane);
}

// `memory`: see RunOptions::explain_memory.
inline Verdict judge(const std::string& text, const std::vector<std::string>& faults = {}, bool explain = true,
                     std::optional<std::uint64_t> memory = std::nullopt) {
  static ModelCache models;
  RunOptions options;
  options.models = &models;
  options.explain = explain;
  options.explain_memory = memory;
  return judge_text(text, options, faults);
}

inline const Explanation& explanation_of(const Verdict& verdict, const std::string& id) {
  for (const Judgement& j : verdict.judgements)
    if (j.spec->id == id) return j.explanation;
  FAIL("no falsifier " << id);
  return verdict.judgements.front().explanation;
}

inline std::string told(const Verdict& verdict, const Divergence& d) {
  return fmt::format("{} at {} of {}", name_of(d.cause), text_of(d.site),
                     verdict.contract->lanes[static_cast<std::size_t>(d.lane)].name);
}
inline std::vector<std::string> told(const Verdict& verdict) {
  std::vector<std::string> list;
  for (const Divergence& d : verdict.diagnosis.divergences) list.push_back(told(verdict, d));
  return list;
}

// Whatever is falsified has an explanation, which names what it says it does.
inline void check_all_explained(const Verdict& verdict) {
  for (const Judgement& j : verdict.judgements) {
    if (j.outcome != Outcome::falsified) continue;
    INFO(j.spec->id);
    const Explanation& e = j.explanation;
    const bool names_one = is_of_step(e.cause) || is_of_routing(e.cause) || e.cause == Cause::inherited ||
                           e.cause == Cause::nonfinite_inherited || e.cause == Cause::oracle_not_finite;
    CHECK((e.divergence >= 0) == names_one);
    CHECK(e.divergence < static_cast<int>(verdict.diagnosis.divergences.size()));
    if (e.cause == Cause::unexplained) CHECK_FALSE(e.text.empty());
  }
}

struct Case {
  std::string fault;  // as `--inject` takes it, without the lane
  std::string cause;
  std::string site;
};

inline const std::vector<Case> cases = {
    {"inject: scale, factor: 3, stage: ffn_norm, layer: 1", "scale", "layer 1, ffn_norm"},
    {"inject: zero, stage: moe_expert_swiglu, layer: 2", "zero", "layer 2, moe_expert_swiglu"},
    {"inject: nan, stage: moe_expert_out, layer: 2, positions: 1", "nonfinite_origin", "layer 2, moe_expert_out"},
    {"inject: inf, stage: embedding", "nonfinite_origin", "embedding"},
    {"inject: bitflip, bit: 30, stage: attn_out, layer: 3", "bitflip", "layer 3, attn_out"},
    {"inject: wrong_expert, stage: moe_expert_up, layer: 1", "wrong_tensor", "layer 1, moe_expert_up"},
    {"inject: wrong_expert, stage: moe_router_indices, layer: 1", "routing_real", "layer 1, moe_router_indices"},
    {"inject: drop_top_expert, stage: moe_ffn_out, layer: 0", "dropped_expert", "layer 0, moe_ffn_out"},
    {"inject: uniform_weights, stage: moe_router_weights, layer: 2", "uniform_weights", "layer 2, moe_router_weights"},
    {"inject: wrong_type, stage: moe_expert_out, layer: 1", "wrong_type", "layer 1, moe_expert_out"},
    {"inject: skip_norm, stage: attn_norm, layer: 2", "skipped", "layer 2, attn_norm"},
    {"inject: rope_theta, stage: q_post_rope, layer: 1", "rope_theta", "layer 1, q_post_rope"},
    {"inject: rope_interleaved, stage: k_post_rope, layer: 1", "permutation", "layer 1, k_post_rope"},
    {"inject: transpose, stage: attn_out, layer: 0", "transposed", "layer 0, attn_out"},
    {"inject: quantise_activations, stage: moe_expert_gate, layer: 2", "rounded_activations",
     "layer 2, moe_expert_gate"},
    {"inject: off_by_one_position, stage: q_post_rope, layer: 2", "shifted_position", "layer 2, q_post_rope"},
    {"inject: stale_kv, stage: attn_scores, layer: 1, positions: 1", "stale_kv", "layer 1, attn_scores"},
};

}  // namespace moe_diag
