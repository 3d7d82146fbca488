// SPDX-License-Identifier: MIT
#include "core/ops/fault.hpp"

namespace moe_diag {
namespace {

using Kind = Fault::Kind;

}  // namespace

std::string_view name_of(Kind kind) { return info(kind).name; }

bool fits(Kind kind, Stage stage) { return info(kind).fits(stage); }

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
