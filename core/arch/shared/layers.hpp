// SPDX-License-Identifier: MIT
#pragma once

#include <string_view>
#include <vector>

#include "core/arch/architecture.hpp"

// The steps and tensors that layers of several architectures have, as core/arch/shared/stage_rows.hpp has their stages.
namespace moe_diag::layers {

// Attention, from the rotated queries and keys to the residual stream: reads `x`, which goes past it, and writes
// post_attn_residual.
void add_attention(ProgramBuilder& program, int layer, std::string_view x);

// Router and experts, from ffn_norm to the sum of the experts chosen, moe_ffn_out.
// `renormalised`: the weights of the experts chosen are divided by their sum.
void add_experts(ProgramBuilder& program, int layer, bool renormalised);

// The tensors of one layer, one by one.
TensorSpec norm_tensor(int layer, std::string_view role, std::int64_t width, float size);
TensorSpec matrix_tensor(int layer, std::string_view role, std::int64_t cols, std::int64_t rows, float gain = 1);
TensorSpec bias_tensor(int layer, std::string_view role, std::int64_t rows, float size);
// The norm before attention, its projections of queries, keys and values, and that of its output, in this order.
std::vector<TensorSpec> attention_tensors(int layer, const ModelConfig& config);
// The norm before the router, the router, and the experts' gate, up and down.
std::vector<TensorSpec> expert_tensors(int layer, const ModelConfig& config);

// The table of embeddings; final norm and head.
std::vector<TensorSpec> first_tensors(const ModelConfig& config);
std::vector<TensorSpec> last_tensors(const ModelConfig& config);
// embedding, then `layer` for each layer, then final_norm and lm_head.
void add_steps(ProgramBuilder& program, void (*add_layer)(ProgramBuilder&, int layer, std::string_view x));

}  // namespace moe_diag::layers
