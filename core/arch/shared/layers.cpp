// SPDX-License-Identifier: MIT
// The forward pass of a layer, as far as architectures share it: the steps of attention and experts, and the tensors
// that they read.
//
// A layer is described here, as a list of steps; lanes compute it. p.add(layer, operator, inputs, weights, outputs)
// appends one step, and what is assigned to it are the operator's parameters. Inputs and outputs are stages, by the
// names in the architecture's table (core/arch/shared/stage_rows.hpp). Weights are roles: names of tensors without
// "blk.<layer>." and ".weight". p.read_cache(name, i) lets the step append its input i to a cache and read all of it.
// Operators are defined at `enum class Op` (core/api/op.hpp), computed in double in core/ops, and fast in each backend.
//
// A part is shared when architectures have the same steps. Where one of its parameters differs, it becomes an argument,
// as `renormalised` is; an architecture with other steps writes its own in its file (core/arch/qwen3moe.cpp).
#include "core/arch/shared/layers.hpp"

#include <cmath>

namespace moe_diag::layers {

void add_attention(ProgramBuilder& p, int l, std::string_view x) {
  const ModelConfig& c = p.config();
  const HeadSizes sizes{c.heads, c.kv_heads, c.head_dim};
  p.add(l, Op::scores, {"q_post_rope", "k_post_rope"}, {}, {"attn_scores"}) =
      ScoresParams{sizes, 1 / std::sqrt(c.head_dim)};
  p.read_cache("keys", 1);
  p.add(l, Op::softmax, {"attn_scores"}, {}, {"attn_softmax"}) = SoftmaxParams{.causal = true};
  p.add(l, Op::mix, {"attn_softmax", "qkv_matmul"}, {}, {"attention"}) = MixParams{sizes};
  p.read_cache("values", 1, c.q_width() + c.kv_width());
  p.add(l, Op::linear, {"attention"}, {"attn_output"}, {"attn_out"});
  p.add(l, Op::add, {x, "attn_out"}, {}, {"post_attn_residual"});
}

void add_experts(ProgramBuilder& p, int l, bool renormalised) {
  p.add(l, Op::linear, {"ffn_norm"}, {"ffn_gate_inp"}, {"moe_router_logits"});
  p.add(l, Op::softmax, {"moe_router_logits"}, {}, {"moe_router_probs"});
  p.add(l, Op::topk, {"moe_router_probs"}, {}, {"moe_router_indices", "moe_router_weights"}) = TopkParams{renormalised};
  p.add(l, Op::expert_linear, {"ffn_norm", "moe_router_indices"}, {"ffn_gate_exps"}, {"moe_expert_gate"});
  p.add(l, Op::expert_linear, {"ffn_norm", "moe_router_indices"}, {"ffn_up_exps"}, {"moe_expert_up"});
  p.add(l, Op::swiglu, {"moe_expert_gate", "moe_expert_up"}, {}, {"moe_expert_swiglu"});
  p.add(l, Op::expert_linear, {"moe_expert_swiglu", "moe_router_indices"}, {"ffn_down_exps"}, {"moe_expert_out"});
  p.add(l, Op::weigh, {"moe_expert_out", "moe_router_weights"}, {}, {"moe_expert_weighted"});
  p.add(l, Op::combine, {"moe_expert_weighted"}, {}, {"moe_ffn_out"});
}

TensorSpec norm_tensor(int l, std::string_view role, std::int64_t width, float size) {
  return {.role = role, .layer = l, .kind = TensorKind::norm, .cols = width, .rank = 1, .gain = size};
}

TensorSpec matrix_tensor(int l, std::string_view role, std::int64_t cols, std::int64_t rows, float gain) {
  return {.role = role, .layer = l, .cols = cols, .rows = rows, .gain = gain};
}

TensorSpec bias_tensor(int l, std::string_view role, std::int64_t rows, float size) {
  return {
      .role = role, .layer = l, .kind = TensorKind::bias, .cols = rows, .rank = 1, .is_optional = true, .gain = size};
}

std::vector<TensorSpec> attention_tensors(int l, const ModelConfig& c) {
  TensorSpec values = matrix_tensor(l, "attn_v", c.hidden, c.kv_width());
  values.more_bits = true;
  return {norm_tensor(l, "attn_norm", c.hidden, 1), matrix_tensor(l, "attn_q", c.hidden, c.q_width()),
          matrix_tensor(l, "attn_k", c.hidden, c.kv_width()), values,
          matrix_tensor(l, "attn_output", c.q_width(), c.hidden, 0.6f)};
}

std::vector<TensorSpec> expert_tensors(int l, const ModelConfig& c) {
  const std::int64_t width = c.expert_width_of(l);
  TensorSpec router = matrix_tensor(l, "ffn_gate_inp", c.hidden, c.experts, 1.5f);
  router.kind = TensorKind::router;
  std::vector<TensorSpec> specs{matrix_tensor(l, "ffn_gate_exps", c.hidden, width, 1.5f),
                                matrix_tensor(l, "ffn_up_exps", c.hidden, width),
                                matrix_tensor(l, "ffn_down_exps", width, c.hidden, 1.2f)};
  for (TensorSpec& spec : specs) {
    spec.experts = c.experts;
    spec.rank = 3;
  }
  specs.back().more_bits = specs.back().massive = true;
  specs.insert(specs.begin(), {norm_tensor(l, "ffn_norm", c.hidden, 1), router});
  return specs;
}

std::vector<TensorSpec> first_tensors(const ModelConfig& c) {
  return {{.role = "token_embd", .kind = TensorKind::table, .cols = c.hidden, .rows = c.vocab}};
}

std::vector<TensorSpec> last_tensors(const ModelConfig& c) {
  std::vector<TensorSpec> specs{{.role = "output_norm", .kind = TensorKind::norm, .cols = c.hidden, .rank = 1}};
  if (!c.tied_output)
    specs.push_back({.role = "output", .kind = TensorKind::head, .cols = c.hidden, .rows = c.vocab, .gain = 2.5f});
  return specs;
}

void add_steps(ProgramBuilder& p, void (*add_layer)(ProgramBuilder&, int, std::string_view)) {
  p.add(-1, Op::embed, {}, {"token_embd"}, {"embedding"});
  std::string_view x = "embedding";
  for (int l = 0; l < p.config().layers; ++l) {
    add_layer(p, l, x);
    x = "post_ffn_residual";
  }
  p.norm(-1, x, "output_norm", "final_norm", p.config().hidden);
  p.add(-1, Op::linear, {"final_norm"}, {"output"}, {"lm_head"});
}

}  // namespace moe_diag::layers
