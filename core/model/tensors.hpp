// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/api/model.hpp"

namespace moe_diag {

// What a tensor is in a Qwen3-MoE model.
enum class Role : std::uint8_t {
  token_embd,
  attn_norm,
  attn_q,
  attn_k,
  attn_v,
  attn_q_norm,
  attn_k_norm,
  attn_output,
  ffn_norm,
  ffn_gate_inp,
  ffn_gate_exps,
  ffn_up_exps,
  ffn_down_exps,
  output_norm,
  output,
};

// GGUF's name of a role, without "blk.<layer>." and ".weight".
std::string_view name_of(Role role);

// Whether the tensor is a vector that scales a normalised row.
bool is_norm(Role role);

// One tensor that a model of a configuration has.
struct TensorSpec {
  Role role;
  int layer = -1;  // -1: model-wide
  std::string name;
  std::int64_t cols = 0, rows = 1, experts = 1;
  int rank = 1;  // 1 for norms, 3 for experts, else 2

  std::vector<std::int64_t> dims() const;  // fastest first: cols, rows, experts
};

TensorSpec tensor_spec(const ModelConfig& config, Role role, int layer = -1);

// The tensors of one layer, and those before and after all layers, in forward order.
std::vector<TensorSpec> layer_tensors(const ModelConfig& config, int layer);
std::vector<TensorSpec> first_tensors(const ModelConfig& config);
std::vector<TensorSpec> last_tensors(const ModelConfig& config);

}  // namespace moe_diag
