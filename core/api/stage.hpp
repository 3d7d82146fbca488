// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace moe_diag {

// The named tensors of the forward pass, in forward order.
enum class Stage : std::uint8_t {
  embedding,
  attn_norm,
  qkv_matmul,
  q_norm,
  k_norm,
  q_post_rope,
  k_post_rope,
  attn_scores,
  attn_softmax,
  attention,
  attn_out,
  post_attn_residual,
  ffn_norm,
  moe_router_logits,
  moe_router_probs,
  moe_router_indices,
  moe_router_weights,
  moe_expert_gate,
  moe_expert_up,
  moe_expert_swiglu,
  moe_expert_out,
  moe_expert_weighted,
  moe_ffn_out,
  post_ffn_residual,
  final_norm,
  lm_head,
};

enum class Scope : std::uint8_t { model, layer };
enum class Payload : std::uint8_t { values, indices };

// The sizes a stage's row is made of; the first dimension, positions, is always there.
enum class Dim : std::uint8_t {
  none,
  hidden,        // d
  qkv_width,     // (Hq + 2 Hk) h
  heads,         // Hq
  kv_heads,      // Hk
  head_dim,      // h
  heads_width,   // Hq h
  sequence,      // S
  experts,       // E
  used,          // k
  expert_width,  // f
  vocab,         // V
};

struct StageInfo {
  Stage stage;
  std::string_view name;
  std::string_view alias;  // empty: none
  Scope scope;
  Payload payload;
  std::array<Dim, 2> row;                   // after the position
  std::array<std::string_view, 3> weights;  // GGUF names within the layer, ".weight" left out
  std::string_view llama_cpp;               // what llama.cpp's graph calls it; empty: not there
  std::string_view hf;                      // where HF transformers shows it; empty: fused away
};

// The single source of all that is said about stages, in forward order.
// Sources of the foreign names: llama.cpp src/models/qwen3moe.cpp and src/llama-graph.cpp (cb names, "-<layer>" left
// out); transformers models/qwen3_moe/modeling_qwen3_moe.py (module paths within model.layers.<layer>).
// clang-format off
inline constexpr std::array stage_table{
    StageInfo{Stage::embedding, "embedding", "", Scope::model, Payload::values,
              {Dim::hidden, Dim::none}, {"token_embd", "", ""}, "inp_embd", "model.embed_tokens"},
    StageInfo{Stage::attn_norm, "attn_norm", "", Scope::layer, Payload::values,
              {Dim::hidden, Dim::none}, {"attn_norm", "", ""}, "attn_norm", "input_layernorm"},
    StageInfo{Stage::qkv_matmul, "qkv_matmul", "", Scope::layer, Payload::values,
              {Dim::qkv_width, Dim::none}, {"attn_q", "attn_k", "attn_v"}, "Qcur, Kcur, Vcur",
              "self_attn.q_proj, k_proj, v_proj"},
    StageInfo{Stage::q_norm, "q_norm", "", Scope::layer, Payload::values,
              {Dim::heads, Dim::head_dim}, {"attn_q_norm", "", ""}, "Qcur_normed", "self_attn.q_norm"},
    StageInfo{Stage::k_norm, "k_norm", "", Scope::layer, Payload::values,
              {Dim::kv_heads, Dim::head_dim}, {"attn_k_norm", "", ""}, "Kcur_normed", "self_attn.k_norm"},
    StageInfo{Stage::q_post_rope, "q_post_rope", "", Scope::layer, Payload::values,
              {Dim::heads, Dim::head_dim}, {}, "Qcur", "query of the attention function"},
    StageInfo{Stage::k_post_rope, "k_post_rope", "", Scope::layer, Payload::values,
              {Dim::kv_heads, Dim::head_dim}, {}, "Kcur", "key of the attention function"},
    StageInfo{Stage::attn_scores, "attn_scores", "", Scope::layer, Payload::values,
              {Dim::heads, Dim::sequence}, {}, "kq", ""},
    StageInfo{Stage::attn_softmax, "attn_softmax", "", Scope::layer, Payload::values,
              {Dim::heads, Dim::sequence}, {}, "kq_soft_max", "attentions"},
    StageInfo{Stage::attention, "attention", "", Scope::layer, Payload::values,
              {Dim::heads_width, Dim::none}, {}, "kqv_out", "input of self_attn.o_proj"},
    StageInfo{Stage::attn_out, "attn_out", "", Scope::layer, Payload::values,
              {Dim::hidden, Dim::none}, {"attn_output", "", ""}, "attn_out", "self_attn.o_proj"},
    StageInfo{Stage::post_attn_residual, "post_attn_residual", "", Scope::layer, Payload::values,
              {Dim::hidden, Dim::none}, {}, "ffn_inp", "input of post_attention_layernorm"},
    StageInfo{Stage::ffn_norm, "ffn_norm", "", Scope::layer, Payload::values,
              {Dim::hidden, Dim::none}, {"ffn_norm", "", ""}, "ffn_norm", "post_attention_layernorm"},
    StageInfo{Stage::moe_router_logits, "moe_router_logits", "", Scope::layer, Payload::values,
              {Dim::experts, Dim::none}, {"ffn_gate_inp", "", ""}, "ffn_moe_logits", "mlp.gate"},
    StageInfo{Stage::moe_router_probs, "moe_router_probs", "", Scope::layer, Payload::values,
              {Dim::experts, Dim::none}, {}, "ffn_moe_probs", ""},
    StageInfo{Stage::moe_router_indices, "moe_router_indices", "", Scope::layer, Payload::indices,
              {Dim::used, Dim::none}, {}, "ffn_moe_topk", "mlp.gate"},
    StageInfo{Stage::moe_router_weights, "moe_router_weights", "moe_router", Scope::layer, Payload::values,
              {Dim::used, Dim::none}, {}, "ffn_moe_weights_norm", "mlp.gate"},
    StageInfo{Stage::moe_expert_gate, "moe_expert_gate", "", Scope::layer, Payload::values,
              {Dim::used, Dim::expert_width}, {"ffn_gate_exps", "", ""}, "ffn_moe_gate", ""},
    StageInfo{Stage::moe_expert_up, "moe_expert_up", "", Scope::layer, Payload::values,
              {Dim::used, Dim::expert_width}, {"ffn_up_exps", "", ""}, "ffn_moe_up", ""},
    StageInfo{Stage::moe_expert_swiglu, "moe_expert_swiglu", "moe_expert_swigl", Scope::layer, Payload::values,
              {Dim::used, Dim::expert_width}, {}, "ffn_moe_swiglu", ""},
    StageInfo{Stage::moe_expert_out, "moe_expert_out", "", Scope::layer, Payload::values,
              {Dim::used, Dim::hidden}, {"ffn_down_exps", "", ""}, "ffn_moe_down", ""},
    StageInfo{Stage::moe_expert_weighted, "moe_expert_weighted", "", Scope::layer, Payload::values,
              {Dim::used, Dim::hidden}, {}, "ffn_moe_weighted", ""},
    StageInfo{Stage::moe_ffn_out, "moe_ffn_out", "", Scope::layer, Payload::values,
              {Dim::hidden, Dim::none}, {}, "ffn_moe_out", "mlp"},
    StageInfo{Stage::post_ffn_residual, "post_ffn_residual", "layer_output", Scope::layer, Payload::values,
              {Dim::hidden, Dim::none}, {}, "l_out", "the layer's output"},
    StageInfo{Stage::final_norm, "final_norm", "", Scope::model, Payload::values,
              {Dim::hidden, Dim::none}, {"output_norm", "", ""}, "result_norm", "model.norm"},
    StageInfo{Stage::lm_head, "lm_head", "", Scope::model, Payload::values,
              {Dim::vocab, Dim::none}, {"output", "", ""}, "result_output", "lm_head"},
};
// clang-format on

inline constexpr std::size_t stage_count = stage_table.size();

constexpr const StageInfo& info(Stage stage) { return stage_table[static_cast<std::size_t>(stage)]; }
constexpr std::string_view name_of(Stage stage) { return info(stage).name; }

// True for the stages that hold one slot per selected expert: [T, k, ...]. They are compared by expert id.
constexpr bool is_per_expert(Stage stage) {
  return stage >= Stage::moe_router_weights && stage <= Stage::moe_expert_weighted;
}

// A stage of one layer; `layer` is -1 for the stages of the whole model. Ordered as the forward pass goes.
struct Site {
  Stage stage = Stage::embedding;
  int layer = -1;

  friend constexpr bool operator==(const Site&, const Site&) = default;
};

constexpr bool operator<(const Site& a, const Site& b) {
  // The embedding comes before layer 0, the final norm and the head after the last layer.
  constexpr auto rank = [](const Site& s) { return s.stage > Stage::post_ffn_residual ? 1 << 20 : s.layer; };
  return rank(a) != rank(b) ? rank(a) < rank(b) : a.stage < b.stage;
}

}  // namespace moe_diag
