// SPDX-License-Identifier: MIT
#include "core/ops/fault.hpp"

#include <algorithm>
#include <initializer_list>

namespace moe_diag {
namespace {

using Kind = Fault::Kind;

bool is_any_of(Stage stage, std::initializer_list<Stage> list) {
  return std::find(list.begin(), list.end(), stage) != list.end();
}

bool is_expert_product(Stage stage) {
  return is_any_of(stage, {Stage::moe_expert_gate, Stage::moe_expert_up, Stage::moe_expert_out});
}

bool is_product(Stage stage) {
  return is_expert_product(stage) ||
         is_any_of(stage, {Stage::qkv_matmul, Stage::attn_out, Stage::moe_router_logits, Stage::lm_head});
}

}  // namespace

std::string_view name_of(Kind kind) { return info(kind).name; }

bool fits(Kind kind, Stage stage) {
  switch (kind) {
    case Kind::nan:
    case Kind::inf:
    case Kind::scale:
    case Kind::zero:
    case Kind::bitflip: return info(stage).payload == Payload::values;
    case Kind::wrong_expert: return stage == Stage::moe_router_indices || is_expert_product(stage);
    case Kind::drop_top_expert: return stage == Stage::moe_ffn_out;
    case Kind::uniform_weights: return stage == Stage::moe_router_weights;
    case Kind::swap_tie: return stage == Stage::moe_router_indices;
    case Kind::wrong_type:
    case Kind::quantise_activations:
    case Kind::transpose: return is_product(stage);
    case Kind::skip_norm: return is_any_of(stage, {Stage::attn_norm, Stage::ffn_norm, Stage::final_norm});
    case Kind::skip_qk_norm: return is_any_of(stage, {Stage::q_norm, Stage::k_norm});
    case Kind::rope_theta:
    case Kind::rope_interleaved:
    case Kind::off_by_one_position: return is_any_of(stage, {Stage::q_post_rope, Stage::k_post_rope});
    case Kind::stale_kv: return stage == Stage::attn_scores;
  }
  return false;
}

std::vector<std::string> fault_names() {
  std::vector<std::string> names;
  names.reserve(fault_table.size());
  for (const FaultInfo& f : fault_table) names.emplace_back(f.name);
  return names;
}

bool is_computed(const Fault& fault) { return info(fault.kind).computed && fault.stage != Stage::moe_router_indices; }

bool keeps_order(const Fault& fault) {
  return info(fault.kind).keeps_order && (fault.kind != Kind::scale || fault.factor > 0);
}

bool spares_the_first(const Fault& fault) {
  return fault.kind == Kind::rope_theta || fault.kind == Kind::rope_interleaved || fault.kind == Kind::stale_kv;
}

BlockType type_read(const Fault& fault, BlockType written) {
  if (fault.type) return *fault.type;
  if (written == BlockType::q4_k) return BlockType::q6_k;
  return written == BlockType::q6_k ? BlockType::q4_k : written;
}

}  // namespace moe_diag
