// SPDX-License-Identifier: MIT
#include "core/model/tensors.hpp"

#include <fmt/format.h>

namespace moe_diag {

std::string_view name_of(Role role) {
  constexpr std::string_view names[] = {"token_embd",    "attn_norm",   "attn_q",        "attn_k",      "attn_v",
                                        "attn_q_norm",   "attn_k_norm", "attn_output",   "ffn_norm",    "ffn_gate_inp",
                                        "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps", "output_norm", "output"};
  return names[static_cast<std::size_t>(role)];
}

bool is_norm(Role role) {
  return role == Role::attn_norm || role == Role::attn_q_norm || role == Role::attn_k_norm || role == Role::ffn_norm ||
         role == Role::output_norm;
}

std::vector<std::int64_t> TensorSpec::dims() const {
  if (rank == 1) return {cols};
  if (rank == 2) return {cols, rows};
  return {cols, rows, experts};
}

TensorSpec tensor_spec(const ModelConfig& c, Role role, int layer) {
  const auto make = [&](int rank, std::int64_t cols, std::int64_t rows, std::int64_t experts) {
    const std::string block = layer < 0 ? std::string() : fmt::format("blk.{}.", layer);
    return TensorSpec{role, layer, fmt::format("{}{}.weight", block, name_of(role)), cols, rows, experts, rank};
  };
  switch (role) {
    case Role::token_embd:
    case Role::output: return make(2, c.hidden, c.vocab, 1);
    case Role::attn_norm:
    case Role::ffn_norm:
    case Role::output_norm: return make(1, c.hidden, 1, 1);
    case Role::attn_q_norm:
    case Role::attn_k_norm: return make(1, c.head_dim, 1, 1);
    case Role::attn_q: return make(2, c.hidden, c.q_width(), 1);
    case Role::attn_k:
    case Role::attn_v: return make(2, c.hidden, c.kv_width(), 1);
    case Role::attn_output: return make(2, c.q_width(), c.hidden, 1);
    case Role::ffn_gate_inp: return make(2, c.hidden, c.experts, 1);
    case Role::ffn_gate_exps:
    case Role::ffn_up_exps: return make(3, c.hidden, c.expert_width, c.experts);
    case Role::ffn_down_exps: return make(3, c.expert_width, c.hidden, c.experts);
  }
  return make(1, 0, 0, 0);
}

std::vector<TensorSpec> layer_tensors(const ModelConfig& config, int layer) {
  std::vector<TensorSpec> specs;
  for (const Role role : {Role::attn_norm, Role::attn_q, Role::attn_k, Role::attn_v, Role::attn_q_norm,
                          Role::attn_k_norm, Role::attn_output, Role::ffn_norm, Role::ffn_gate_inp, Role::ffn_gate_exps,
                          Role::ffn_up_exps, Role::ffn_down_exps})
    specs.push_back(tensor_spec(config, role, layer));
  return specs;
}

std::vector<TensorSpec> first_tensors(const ModelConfig& config) { return {tensor_spec(config, Role::token_embd)}; }

std::vector<TensorSpec> last_tensors(const ModelConfig& config) {
  std::vector<TensorSpec> specs{tensor_spec(config, Role::output_norm)};
  if (!config.tied_output) specs.push_back(tensor_spec(config, Role::output));
  return specs;
}

}  // namespace moe_diag
