// SPDX-License-Identifier: MIT
#pragma once

#include <array>

#include "core/api/cache.hpp"
#include "core/api/model.hpp"
#include "core/api/stage.hpp"

// The stages and caches that several architectures have, and the sizes of their rows. An architecture whose stage has
// another operator, shape or foreign name has a row of its own. Sources of the foreign names: llama.cpp
// src/models/qwen3moe.cpp and src/llama-graph.cpp (cb names, "-<layer>" left out); transformers
// models/qwen3_moe/modeling_qwen3_moe.py (module paths within model.layers.<layer>).
namespace moe_diag {

namespace dims {

inline constexpr Dim hidden{"d", [](const ModelConfig& c, int) -> std::int64_t { return c.hidden; }};
inline constexpr Dim qkv_width{"(Hq+2Hk)h", [](const ModelConfig& c, int) -> std::int64_t { return c.qkv_width(); }};
inline constexpr Dim heads{"Hq", [](const ModelConfig& c, int) -> std::int64_t { return c.heads; }};
inline constexpr Dim kv_heads{"Hk", [](const ModelConfig& c, int) -> std::int64_t { return c.kv_heads; }};
inline constexpr Dim head_dim{"h", [](const ModelConfig& c, int) -> std::int64_t { return c.head_dim; }};
inline constexpr Dim kv_width{"Hk*h", [](const ModelConfig& c, int) -> std::int64_t { return c.kv_width(); }};
inline constexpr Dim heads_width{"Hq*h", [](const ModelConfig& c, int) -> std::int64_t { return c.q_width(); }};
inline constexpr Dim sequence{"S", nullptr};
inline constexpr Dim experts{"E", [](const ModelConfig& c, int) -> std::int64_t { return c.experts; }};
inline constexpr Dim used{"k", [](const ModelConfig& c, int) -> std::int64_t { return c.used; }};
inline constexpr Dim expert_width{"f",
                                  [](const ModelConfig& c, int l) -> std::int64_t { return c.expert_width_of(l); }};
inline constexpr Dim vocab{"V", [](const ModelConfig& c, int) -> std::int64_t { return c.vocab; }};

}  // namespace dims

namespace rows {

inline constexpr StageInfo embedding{.name = "embedding",
                                     .scope = Scope::before_layers,
                                     .op = Op::embed,
                                     .row = {dims::hidden},
                                     .weights = {"token_embd"},
                                     .llama_cpp = "inp_embd",
                                     .hf = "model.embed_tokens"};
inline constexpr StageInfo attn_norm{.name = "attn_norm",
                                     .op = Op::rms_norm,
                                     .row = {dims::hidden},
                                     .weights = {"attn_norm"},
                                     .llama_cpp = "attn_norm",
                                     .hf = "input_layernorm"};
inline constexpr StageInfo qkv_matmul{.name = "qkv_matmul",
                                      .op = Op::linear,
                                      .row = {dims::qkv_width},
                                      .weights = {"attn_q", "attn_k", "attn_v"},
                                      .llama_cpp = "Qcur, Kcur, Vcur",
                                      .hf = "self_attn.q_proj, k_proj, v_proj",
                                      .head = dims::head_dim};
inline constexpr StageInfo q_norm{.name = "q_norm",
                                  .op = Op::rms_norm,
                                  .row = {dims::heads, dims::head_dim},
                                  .weights = {"attn_q_norm"},
                                  .llama_cpp = "Qcur_normed",
                                  .hf = "self_attn.q_norm",
                                  .head = dims::head_dim};
inline constexpr StageInfo k_norm{.name = "k_norm",
                                  .op = Op::rms_norm,
                                  .row = {dims::kv_heads, dims::head_dim},
                                  .weights = {"attn_k_norm"},
                                  .llama_cpp = "Kcur_normed",
                                  .hf = "self_attn.k_norm",
                                  .head = dims::head_dim};
inline constexpr StageInfo q_post_rope{.name = "q_post_rope",
                                       .op = Op::rope,
                                       .row = {dims::heads, dims::head_dim},
                                       .llama_cpp = "Qcur",
                                       .hf = "query of the attention function",
                                       .head = dims::head_dim};
inline constexpr StageInfo k_post_rope{.name = "k_post_rope",
                                       .op = Op::rope,
                                       .row = {dims::kv_heads, dims::head_dim},
                                       .llama_cpp = "Kcur",
                                       .hf = "key of the attention function",
                                       .head = dims::head_dim};
inline constexpr StageInfo attn_scores{.name = "attn_scores",
                                       .op = Op::scores,
                                       .role = Role::key_values,
                                       .row = {dims::heads, dims::sequence},
                                       .llama_cpp = "kq"};
inline constexpr StageInfo attn_softmax{.name = "attn_softmax",
                                        .op = Op::softmax,
                                        .role = Role::key_values,
                                        .row = {dims::heads, dims::sequence},
                                        .llama_cpp = "kq_soft_max",
                                        .hf = "attentions"};
inline constexpr StageInfo attention{.name = "attention",
                                     .op = Op::mix,
                                     .row = {dims::heads_width},
                                     .llama_cpp = "kqv_out",
                                     .hf = "input of self_attn.o_proj",
                                     .head = dims::head_dim};
inline constexpr StageInfo attn_out{.name = "attn_out",
                                    .op = Op::linear,
                                    .row = {dims::hidden},
                                    .weights = {"attn_output"},
                                    .llama_cpp = "attn_out",
                                    .hf = "self_attn.o_proj"};
inline constexpr StageInfo post_attn_residual{.name = "post_attn_residual",
                                              .op = Op::add,
                                              .row = {dims::hidden},
                                              .llama_cpp = "ffn_inp",
                                              .hf = "input of post_attention_layernorm"};
inline constexpr StageInfo ffn_norm{.name = "ffn_norm",
                                    .op = Op::rms_norm,
                                    .row = {dims::hidden},
                                    .weights = {"ffn_norm"},
                                    .llama_cpp = "ffn_norm",
                                    .hf = "post_attention_layernorm"};
inline constexpr StageInfo moe_router_logits{.name = "moe_router_logits",
                                             .op = Op::linear,
                                             .role = Role::router_scores,
                                             .row = {dims::experts},
                                             .weights = {"ffn_gate_inp"},
                                             .llama_cpp = "ffn_moe_logits",
                                             .hf = "mlp.gate"};
inline constexpr StageInfo moe_router_probs{.name = "moe_router_probs",
                                            .op = Op::softmax,
                                            .role = Role::router_probs,
                                            .row = {dims::experts},
                                            .llama_cpp = "ffn_moe_probs",
                                            .sums_to_one = true};
inline constexpr StageInfo moe_router_indices{.name = "moe_router_indices",
                                              .op = Op::topk,
                                              .role = Role::choice,
                                              .row = {dims::used},
                                              .llama_cpp = "ffn_moe_topk",
                                              .hf = "mlp.gate"};
inline constexpr StageInfo moe_router_weights{.name = "moe_router_weights",
                                              .op = Op::topk,
                                              .role = Role::choice_weights,
                                              .row = {dims::used},
                                              .llama_cpp = "ffn_moe_weights_norm",
                                              .hf = "mlp.gate",
                                              .alias = "moe_router",
                                              .sums_to_one = true};
inline constexpr StageInfo moe_expert_gate{.name = "moe_expert_gate",
                                           .op = Op::expert_linear,
                                           .role = Role::expert_values,
                                           .row = {dims::used, dims::expert_width},
                                           .weights = {"ffn_gate_exps"},
                                           .llama_cpp = "ffn_moe_gate"};
inline constexpr StageInfo moe_expert_up{.name = "moe_expert_up",
                                         .op = Op::expert_linear,
                                         .role = Role::expert_values,
                                         .row = {dims::used, dims::expert_width},
                                         .weights = {"ffn_up_exps"},
                                         .llama_cpp = "ffn_moe_up"};
inline constexpr StageInfo moe_expert_swiglu{.name = "moe_expert_swiglu",
                                             .op = Op::swiglu,
                                             .role = Role::expert_values,
                                             .row = {dims::used, dims::expert_width},
                                             .llama_cpp = "ffn_moe_swiglu",
                                             .alias = "moe_expert_swigl"};
inline constexpr StageInfo moe_expert_out{.name = "moe_expert_out",
                                          .op = Op::expert_linear,
                                          .role = Role::expert_values,
                                          .row = {dims::used, dims::hidden},
                                          .weights = {"ffn_down_exps"},
                                          .llama_cpp = "ffn_moe_down"};
inline constexpr StageInfo moe_expert_weighted{.name = "moe_expert_weighted",
                                               .op = Op::weigh,
                                               .role = Role::weighed_values,
                                               .row = {dims::used, dims::hidden},
                                               .llama_cpp = "ffn_moe_weighted"};
inline constexpr StageInfo moe_ffn_out{
    .name = "moe_ffn_out", .op = Op::combine, .row = {dims::hidden}, .llama_cpp = "ffn_moe_out", .hf = "mlp"};
inline constexpr StageInfo post_ffn_residual{.name = "post_ffn_residual",
                                             .op = Op::add,
                                             .role = Role::layer_output,
                                             .row = {dims::hidden},
                                             .llama_cpp = "l_out",
                                             .hf = "the layer's output",
                                             .alias = "layer_output"};
inline constexpr StageInfo final_norm{.name = "final_norm",
                                      .scope = Scope::after_layers,
                                      .op = Op::rms_norm,
                                      .row = {dims::hidden},
                                      .weights = {"output_norm"},
                                      .llama_cpp = "result_norm",
                                      .hf = "model.norm"};
inline constexpr StageInfo lm_head{.name = "lm_head",
                                   .scope = Scope::after_layers,
                                   .op = Op::linear,
                                   .role = Role::logits,
                                   .row = {dims::vocab},
                                   .weights = {"output"},
                                   .llama_cpp = "result_output",
                                   .hf = "lm_head"};

}  // namespace rows

// The caches of attention over all positions, the same in every layer.
inline constexpr auto kv_caches = numbered(std::array{CacheInfo{.name = "keys", .row = {dims::kv_width}},
                                                      CacheInfo{.name = "values", .row = {dims::kv_width}}});

}  // namespace moe_diag
