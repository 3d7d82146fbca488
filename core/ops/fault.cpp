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
  const bool several = fault.kind == Kind::eps && is_of_heads(fault.stage);  // each head has another factor
  return info(fault.kind).keeps_order && !several && (fault.kind != Kind::scale || fault.factor > 0);
}

Fault::Form form_of(const Fault& fault) {
  if (fault.form != Fault::Form::none) return fault.form;
  for (const FormInfo& row : form_table)
    if (row.kind == fault.kind && row.fits(fault.stage)) return row.form;
  return Fault::Form::none;
}

std::vector<std::string> form_names(Kind kind, Stage stage) {
  std::vector<std::string> names;
  for (const FormInfo& row : form_table)
    if (row.kind == kind && row.fits(stage)) names.emplace_back(row.name);
  return names;
}

std::string_view name_of(Fault::Form form) {
  for (const FormInfo& row : form_table)
    if (row.form == form) return row.name;
  return "";
}

int first_changed(const Fault& fault) {
  switch (fault.kind) {
    case Kind::rope_theta:
    case Kind::rope_interleaved:
    case Kind::rope_partial:
    case Kind::rope_scaled:
    case Kind::stale_kv: return 1;
    case Kind::position_restart: return fault.every;
    case Kind::window: return fault.keys;
    default: return 0;
  }
}

int columns_rotated(const Fault& fault, int head_dim) { return fault.columns > 0 ? fault.columns : head_dim / 4 * 2; }

BlockType type_read(const Fault& fault, BlockType written) {
  if (fault.type) return *fault.type;
  if (written == BlockType::q4_k) return BlockType::q6_k;
  return written == BlockType::q6_k ? BlockType::q4_k : written;
}

BlockType type_kept(const Fault& fault) {
  return fault.type.value_or(fault.kind == Kind::cache_type ? BlockType::q8_0 : BlockType::bf16);
}

}  // namespace moe_diag
