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

// The stages that a fault fits.
namespace fault_at {

constexpr bool values(Stage stage) { return payload_of(stage) == Payload::values; }
constexpr bool choice(Stage stage) { return is(stage, Role::choice); }
constexpr bool choice_weights(Stage stage) { return is(stage, Role::choice_weights); }
template <Op op>
constexpr bool written_by(Stage stage) {
  return info(stage).op == op;
}
constexpr bool product(Stage stage) { return written_by<Op::linear>(stage) || written_by<Op::expert_linear>(stage); }
constexpr bool dispatch(Stage stage) { return choice(stage) || written_by<Op::expert_linear>(stage); }
constexpr bool row_norm(Stage stage) { return written_by<Op::rms_norm>(stage) && !is_of_heads(stage); }
constexpr bool head_norm(Stage stage) { return written_by<Op::rms_norm>(stage) && is_of_heads(stage); }

}  // namespace fault_at

struct FaultInfo {
  Fault::Kind kind;
  std::string_view name;
  bool (*fits)(Stage);
  bool computed;      // of the computation: the step is computed anew, wrongly; else the values it gave are edited
  bool keeps_order;   // what it makes of a row is the row times a positive factor
  bool stays_finite;  // what it makes of finite values is finite
};

// The single source of all that the contract checks about kinds of faults, in the order of the enum. `scale` keeps the
// order only by a positive factor; `wrong_expert` edits values at moe_router_indices.
// clang-format off
inline constexpr std::array fault_table{
    //        kind                                 name                      fits                                computed keeps_order stays_finite
    FaultInfo{Fault::Kind::nan,                    "nan",                    fault_at::values,                     false,   false,      false},
    FaultInfo{Fault::Kind::inf,                    "inf",                    fault_at::values,                     false,   false,      false},
    FaultInfo{Fault::Kind::scale,                  "scale",                  fault_at::values,                     false,   true,       false},
    FaultInfo{Fault::Kind::zero,                   "zero",                   fault_at::values,                     false,   false,      true},
    FaultInfo{Fault::Kind::bitflip,                "bitflip",                fault_at::values,                     false,   false,      false},
    FaultInfo{Fault::Kind::wrong_expert,           "wrong_expert",           fault_at::dispatch,                   true,    false,      true},
    FaultInfo{Fault::Kind::drop_top_expert,        "drop_top_expert",        fault_at::written_by<Op::combine>,    true,    false,      true},
    FaultInfo{Fault::Kind::uniform_weights,        "uniform_weights",        fault_at::choice_weights,             false,   false,      true},
    FaultInfo{Fault::Kind::swap_tie,               "swap_tie",               fault_at::choice,                     false,   false,      true},
    FaultInfo{Fault::Kind::wrong_type,             "wrong_type",             fault_at::product,                    true,    false,      false},
    FaultInfo{Fault::Kind::skip_norm,              "skip_norm",              fault_at::row_norm,                   true,    true,       true},
    FaultInfo{Fault::Kind::skip_qk_norm,           "skip_qk_norm",           fault_at::head_norm,                  true,    false,      true},
    FaultInfo{Fault::Kind::rope_theta,             "rope_theta",             fault_at::written_by<Op::rope>,       true,    false,      true},
    FaultInfo{Fault::Kind::rope_interleaved,       "rope_interleaved",       fault_at::written_by<Op::rope>,       true,    false,      true},
    FaultInfo{Fault::Kind::quantise_activations,   "quantise_activations",   fault_at::product,                    true,    false,      true},
    FaultInfo{Fault::Kind::transpose,              "transpose",              fault_at::product,                    true,    false,      true},
    FaultInfo{Fault::Kind::off_by_one_position,    "off_by_one_position",    fault_at::written_by<Op::rope>,       true,    false,      true},
    FaultInfo{Fault::Kind::stale_kv,               "stale_kv",               fault_at::written_by<Op::scores>,     true,    false,      true},
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
