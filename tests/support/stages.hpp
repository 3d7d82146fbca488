// SPDX-License-Identifier: MIT
#pragma once

#include "core/arch/architecture.hpp"

namespace moe_diag {

extern const Architecture qwen2moe, qwen3moe;

// The stages of Qwen3-MoE, by name.
namespace stages {

inline const Stage embedding = qwen3moe.stages.find("embedding");
inline const Stage attn_norm = qwen3moe.stages.find("attn_norm");
inline const Stage qkv_matmul = qwen3moe.stages.find("qkv_matmul");
inline const Stage q_norm = qwen3moe.stages.find("q_norm");
inline const Stage k_norm = qwen3moe.stages.find("k_norm");
inline const Stage q_post_rope = qwen3moe.stages.find("q_post_rope");
inline const Stage k_post_rope = qwen3moe.stages.find("k_post_rope");
inline const Stage attn_scores = qwen3moe.stages.find("attn_scores");
inline const Stage attn_softmax = qwen3moe.stages.find("attn_softmax");
inline const Stage attention = qwen3moe.stages.find("attention");
inline const Stage attn_out = qwen3moe.stages.find("attn_out");
inline const Stage post_attn_residual = qwen3moe.stages.find("post_attn_residual");
inline const Stage ffn_norm = qwen3moe.stages.find("ffn_norm");
inline const Stage moe_router_logits = qwen3moe.stages.find("moe_router_logits");
inline const Stage moe_router_probs = qwen3moe.stages.find("moe_router_probs");
inline const Stage moe_router_indices = qwen3moe.stages.find("moe_router_indices");
inline const Stage moe_router_weights = qwen3moe.stages.find("moe_router_weights");
inline const Stage moe_expert_gate = qwen3moe.stages.find("moe_expert_gate");
inline const Stage moe_expert_up = qwen3moe.stages.find("moe_expert_up");
inline const Stage moe_expert_swiglu = qwen3moe.stages.find("moe_expert_swiglu");
inline const Stage moe_expert_out = qwen3moe.stages.find("moe_expert_out");
inline const Stage moe_expert_weighted = qwen3moe.stages.find("moe_expert_weighted");
inline const Stage moe_ffn_out = qwen3moe.stages.find("moe_ffn_out");
inline const Stage post_ffn_residual = qwen3moe.stages.find("post_ffn_residual");
inline const Stage final_norm = qwen3moe.stages.find("final_norm");
inline const Stage lm_head = qwen3moe.stages.find("lm_head");

}  // namespace stages

// Its caches.
namespace caches {

inline const Cache keys = qwen3moe.caches.find("keys");
inline const Cache values = qwen3moe.caches.find("values");

}  // namespace caches
}  // namespace moe_diag
