// SPDX-License-Identifier: MIT
#include "core/ops/fault.hpp"

namespace moe_diag {
namespace {

using Kind = Fault::Kind;

bool is_written_by(Stage stage, Op op) { return info(stage).op == op; }
bool is_product(Stage stage) { return is_written_by(stage, Op::linear) || is_written_by(stage, Op::expert_linear); }

}  // namespace

std::string_view name_of(Kind kind) { return info(kind).name; }

bool fits(Kind kind, Stage stage) {
  switch (kind) {
    case Kind::nan:
    case Kind::inf:
    case Kind::scale:
    case Kind::zero:
    case Kind::bitflip: return payload_of(stage) == Payload::values;
    case Kind::wrong_expert: return is(stage, Role::choice) || is_written_by(stage, Op::expert_linear);
    case Kind::drop_top_expert: return is_written_by(stage, Op::combine);
    case Kind::uniform_weights: return is(stage, Role::choice_weights);
    case Kind::swap_tie: return is(stage, Role::choice);
    case Kind::wrong_type:
    case Kind::quantise_activations:
    case Kind::transpose: return is_product(stage);
    case Kind::skip_norm: return is_written_by(stage, Op::rms_norm) && !info(stage).of_heads;
    case Kind::skip_qk_norm: return is_written_by(stage, Op::rms_norm) && info(stage).of_heads;
    case Kind::rope_theta:
    case Kind::rope_interleaved:
    case Kind::off_by_one_position: return is_written_by(stage, Op::rope);
    case Kind::stale_kv: return is_written_by(stage, Op::scores);
  }
  return false;
}

std::vector<std::string> fault_names() {
  std::vector<std::string> names;
  names.reserve(fault_table.size());
  for (const FaultInfo& f : fault_table) names.emplace_back(f.name);
  return names;
}

bool is_computed(const Fault& fault) { return info(fault.kind).computed && !is(fault.stage, Role::choice); }

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
