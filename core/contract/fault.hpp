// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/contract/contract.hpp"

namespace moe_diag {

struct FaultInfo {
  FaultSpec::Kind kind;
  std::string_view name;
  bool computed;      // of the computation: the step is computed anew, wrongly; else the values it gave are edited
  bool keeps_order;   // what it makes of a row is the row times a positive factor
  bool stays_finite;  // what it makes of finite values is finite
};

// The single source of all that the contract checks about kinds of faults, in the order of the enum. `scale` keeps the
// order only by a positive factor; `wrong_expert` edits values at moe_router_indices.
// clang-format off
inline constexpr std::array fault_table{
    //        kind                                   name                    computed keeps_order stays_finite
    FaultInfo{FaultSpec::Kind::nan,                  "nan",                  false,   false,      false},
    FaultInfo{FaultSpec::Kind::inf,                  "inf",                  false,   false,      false},
    FaultInfo{FaultSpec::Kind::scale,                "scale",                false,   true,       false},
    FaultInfo{FaultSpec::Kind::zero,                 "zero",                 false,   false,      true},
    FaultInfo{FaultSpec::Kind::bitflip,              "bitflip",              false,   false,      false},
    FaultInfo{FaultSpec::Kind::wrong_expert,         "wrong_expert",         true,    false,      true},
    FaultInfo{FaultSpec::Kind::drop_top_expert,      "drop_top_expert",      true,    false,      true},
    FaultInfo{FaultSpec::Kind::uniform_weights,      "uniform_weights",      false,   false,      true},
    FaultInfo{FaultSpec::Kind::swap_tie,             "swap_tie",             false,   false,      true},
    FaultInfo{FaultSpec::Kind::wrong_type,           "wrong_type",           true,    false,      false},
    FaultInfo{FaultSpec::Kind::skip_norm,            "skip_norm",            true,    true,       true},
    FaultInfo{FaultSpec::Kind::skip_qk_norm,         "skip_qk_norm",         true,    false,      true},
    FaultInfo{FaultSpec::Kind::rope_theta,           "rope_theta",           true,    false,      true},
    FaultInfo{FaultSpec::Kind::rope_interleaved,     "rope_interleaved",     true,    false,      true},
    FaultInfo{FaultSpec::Kind::quantise_activations, "quantise_activations", true,    false,      true},
    FaultInfo{FaultSpec::Kind::transpose,            "transpose",            true,    false,      true},
    FaultInfo{FaultSpec::Kind::off_by_one_position,  "off_by_one_position",  true,    false,      true},
    FaultInfo{FaultSpec::Kind::stale_kv,             "stale_kv",             true,    false,      true},
};
// clang-format on

constexpr const FaultInfo& info(FaultSpec::Kind kind) { return fault_table[static_cast<std::size_t>(kind)]; }

std::vector<std::string> fault_names();
// The stages at which the fault can be planted: "every stage but moe_router_indices".
std::string fitting_stages(FaultSpec::Kind kind);

// True when the step at the fault's site is computed anew, wrongly; false when the values it gave are edited.
bool is_computed(const FaultSpec& fault);
// True when the fault makes of a row the row times a positive factor.
bool keeps_order(const FaultSpec& fault);

// True when nothing at position 0 can change: nothing is rotated there, and its key has none before it.
bool spares_the_first(const FaultSpec& fault);
// The positions, of a sequence of so many tokens, whose values at its site the fault can change.
std::vector<int> positions_changed(const FaultSpec& fault, int tokens);

// As which type wrong_type reads a weight that was written as `written`; the same when it leaves that weight alone.
BlockType type_read(const FaultSpec& fault, BlockType written);

}  // namespace moe_diag
