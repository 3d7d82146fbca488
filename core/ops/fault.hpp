// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/api/blocks.hpp"
#include "core/api/stage.hpp"

namespace moe_diag {

// A planted mistake of one step. contracts/README.md, "Faults", says for each kind how it changes the step.
struct Fault {
  enum class Kind {
    nan,
    inf,
    scale,
    zero,
    bitflip,
    wrong_expert,
    drop_top_expert,
    uniform_weights,
    swap_tie,
    wrong_type,
    skip_norm,
    skip_qk_norm,
    rope_theta,
    rope_interleaved,
    quantise_activations,
    transpose,
    off_by_one_position,
    stale_kv,
  };
  Kind kind = Kind::nan;
  Stage stage;
  int layer = -1;                 // -1 for stages of the whole model
  int index = 0;                  // nan, inf, bitflip: element of the row
  int bit = -1;                   // bitflip; -1: the highest of the mantissa
  double factor = 2;              // scale
  int expert = -1;                // zero: only this expert's slot; -1: the row
  std::optional<BlockType> type;  // wrong_type; none: Q4_K and Q6_K for each other
  double theta = 10000;           // rope_theta
  int block = 256;                // quantise_activations: values that share a step
};
std::string_view name_of(Fault::Kind kind);

struct FaultInfo {
  Fault::Kind kind;
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
    FaultInfo{Fault::Kind::nan,                  "nan",                  false,   false,      false},
    FaultInfo{Fault::Kind::inf,                  "inf",                  false,   false,      false},
    FaultInfo{Fault::Kind::scale,                "scale",                false,   true,       false},
    FaultInfo{Fault::Kind::zero,                 "zero",                 false,   false,      true},
    FaultInfo{Fault::Kind::bitflip,              "bitflip",              false,   false,      false},
    FaultInfo{Fault::Kind::wrong_expert,         "wrong_expert",         true,    false,      true},
    FaultInfo{Fault::Kind::drop_top_expert,      "drop_top_expert",      true,    false,      true},
    FaultInfo{Fault::Kind::uniform_weights,      "uniform_weights",      false,   false,      true},
    FaultInfo{Fault::Kind::swap_tie,             "swap_tie",             false,   false,      true},
    FaultInfo{Fault::Kind::wrong_type,           "wrong_type",           true,    false,      false},
    FaultInfo{Fault::Kind::skip_norm,            "skip_norm",            true,    true,       true},
    FaultInfo{Fault::Kind::skip_qk_norm,         "skip_qk_norm",         true,    false,      true},
    FaultInfo{Fault::Kind::rope_theta,           "rope_theta",           true,    false,      true},
    FaultInfo{Fault::Kind::rope_interleaved,     "rope_interleaved",     true,    false,      true},
    FaultInfo{Fault::Kind::quantise_activations, "quantise_activations", true,    false,      true},
    FaultInfo{Fault::Kind::transpose,            "transpose",            true,    false,      true},
    FaultInfo{Fault::Kind::off_by_one_position,  "off_by_one_position",  true,    false,      true},
    FaultInfo{Fault::Kind::stale_kv,             "stale_kv",             true,    false,      true},
};
// clang-format on

constexpr const FaultInfo& info(Fault::Kind kind) { return fault_table[static_cast<std::size_t>(kind)]; }

std::vector<std::string> fault_names();
// Whether the fault can be planted at the stage.
bool fits(Fault::Kind kind, Stage stage);

// True when the step at the fault's site is computed anew, wrongly; false when the values it gave are edited.
bool is_computed(const Fault& fault);
// True when the fault makes of a row the row times a positive factor.
bool keeps_order(const Fault& fault);

// True when nothing at position 0 can change: nothing is rotated there, and its key has none before it.
bool spares_the_first(const Fault& fault);

// As which type wrong_type reads a weight that was written as `written`; the same when it leaves that weight alone.
BlockType type_read(const Fault& fault, BlockType written);

}  // namespace moe_diag
