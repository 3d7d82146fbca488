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
    eps,
    norm,
    activation,
    gate_up,
    gating,
    renormalisation,
    duplicate_ids,
    rope_partial,
    rope_scaled,
    position_restart,
    window,
    softmax_scale,
    partial_sum,
    accumulate,
    cache_type,
    wrong_scale,
    f16_overflow,
  };
  // One of several mistakes of a kind; see form_table.
  enum class Form {
    none,
    plus_one,
    layer_norm,
    whole_row,
    gelu,
    gelu_tanh,
    relu,
    silu_1702,
    gpt_oss,
    swapped,
    pairs,
    halves,
    sigmoid,
    softmax,
  };
  Kind kind = Kind::nan;
  Stage stage;
  int layer = -1;     // -1 for stages of the whole model
  int index = 0;      // nan, inf, bitflip: element of the row
  int bit = -1;       // bitflip; -1: the highest of the mantissa
  double factor = 2;  // scale; rope_scaled: what positions are divided by
  int expert = -1;    // zero: only this expert's slot; -1: the row
  std::optional<BlockType>
      type;                // wrong_type; none: Q4_K and Q6_K for each other. accumulate, cache_type: see type_kept
  double theta = 10000;    // rope_theta
  int block = 256;         // quantise_activations: values that share a step
  double eps = 1e-3;       // eps
  Form form = Form::none;  // of the kinds in form_table; none: the first one that fits the stage
  int columns = 0;         // rope_partial: of a head that are rotated, the first ones; 0: half of them
  int every = 2;           // position_restart: positions start again at 0 after so many
  int keys = 2;            // window: how many count
  int times = 0;           // softmax_scale, partial_sum: applied or added so often, 0 or 2, instead of once
  double limit = 65504;    // f16_overflow: the largest value that stays finite
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
constexpr bool router_probs(Stage stage) { return is(stage, Role::router_probs); }
constexpr bool shares(Stage stage) { return router_probs(stage) || choice_weights(stage); }
constexpr bool key_weights(Stage stage) { return written_by<Op::softmax>(stage) && !router_probs(stage); }
constexpr bool sum(Stage stage) { return product(stage) || written_by<Op::combine>(stage); }
constexpr bool attention(Stage stage) { return written_by<Op::scores>(stage) || written_by<Op::mix>(stage); }

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
    FaultInfo{Fault::Kind::eps,                    "eps",                    fault_at::written_by<Op::rms_norm>,   true,    true,       true},
    FaultInfo{Fault::Kind::norm,                   "norm",                   fault_at::written_by<Op::rms_norm>,   true,    false,      true},
    FaultInfo{Fault::Kind::activation,             "activation",             fault_at::written_by<Op::swiglu>,     true,    false,      true},
    FaultInfo{Fault::Kind::gate_up,                "gate_up",                fault_at::written_by<Op::swiglu>,     true,    false,      true},
    FaultInfo{Fault::Kind::gating,                 "gating",                 fault_at::shares,                     true,    false,      true},
    FaultInfo{Fault::Kind::renormalisation,        "renormalisation",        fault_at::choice_weights,             true,    true,       true},
    FaultInfo{Fault::Kind::duplicate_ids,          "duplicate_ids",          fault_at::choice,                     false,   false,      true},
    FaultInfo{Fault::Kind::rope_partial,           "rope_partial",           fault_at::written_by<Op::rope>,       true,    false,      true},
    FaultInfo{Fault::Kind::rope_scaled,            "rope_scaled",            fault_at::written_by<Op::rope>,       true,    false,      true},
    FaultInfo{Fault::Kind::position_restart,       "position_restart",       fault_at::written_by<Op::rope>,       true,    false,      true},
    FaultInfo{Fault::Kind::window,                 "window",                 fault_at::key_weights,                true,    false,      true},
    FaultInfo{Fault::Kind::softmax_scale,          "softmax_scale",          fault_at::written_by<Op::scores>,     true,    true,       true},
    FaultInfo{Fault::Kind::partial_sum,            "partial_sum",            fault_at::sum,                        true,    false,      true},
    FaultInfo{Fault::Kind::accumulate,             "accumulate",             fault_at::sum,                        true,    false,      false},
    FaultInfo{Fault::Kind::cache_type,             "cache_type",             fault_at::attention,                  true,    false,      false},
    FaultInfo{Fault::Kind::wrong_scale,            "wrong_scale",            fault_at::product,                    true,    false,      true},
    FaultInfo{Fault::Kind::f16_overflow,           "f16_overflow",           fault_at::values,                     false,   false,      false},
};
// clang-format on

constexpr const FaultInfo& info(Fault::Kind kind) { return fault_table[static_cast<std::size_t>(kind)]; }

struct FormInfo {
  Fault::Kind kind;
  Fault::Form form;
  std::string_view name;
  bool (*fits)(Stage);
};

// The forms of the kinds that have some. The first one that fits a stage is the kind's own there.
inline constexpr std::array form_table{
    FormInfo{Fault::Kind::norm, Fault::Form::plus_one, "plus_one", fault_at::written_by<Op::rms_norm>},
    FormInfo{Fault::Kind::norm, Fault::Form::layer_norm, "layer_norm", fault_at::written_by<Op::rms_norm>},
    FormInfo{Fault::Kind::norm, Fault::Form::whole_row, "whole_row", fault_at::head_norm},
    FormInfo{Fault::Kind::activation, Fault::Form::gelu, "gelu", fault_at::written_by<Op::swiglu>},
    FormInfo{Fault::Kind::activation, Fault::Form::gelu_tanh, "gelu_tanh", fault_at::written_by<Op::swiglu>},
    FormInfo{Fault::Kind::activation, Fault::Form::relu, "relu", fault_at::written_by<Op::swiglu>},
    FormInfo{Fault::Kind::activation, Fault::Form::silu_1702, "silu_1702", fault_at::written_by<Op::swiglu>},
    FormInfo{Fault::Kind::activation, Fault::Form::gpt_oss, "gpt_oss", fault_at::written_by<Op::swiglu>},
    FormInfo{Fault::Kind::gate_up, Fault::Form::swapped, "swapped", fault_at::written_by<Op::swiglu>},
    FormInfo{Fault::Kind::gate_up, Fault::Form::pairs, "pairs", fault_at::written_by<Op::swiglu>},
    FormInfo{Fault::Kind::gate_up, Fault::Form::halves, "halves", fault_at::written_by<Op::swiglu>},
    FormInfo{Fault::Kind::gating, Fault::Form::sigmoid, "sigmoid", fault_at::router_probs},
    FormInfo{Fault::Kind::gating, Fault::Form::softmax, "softmax", fault_at::choice_weights},
};

// The fault's form: as it says, or the first one of its kind that fits its stage; `none` of kinds that have none.
Fault::Form form_of(const Fault& fault);
// Of the kind, those that fit the stage.
std::vector<std::string> form_names(Fault::Kind kind, Stage stage);
std::string_view name_of(Fault::Form form);

std::vector<std::string> fault_names();
// Whether the fault can be planted at the stage.
bool fits(Fault::Kind kind, Stage stage);

// True when the step at the fault's site is computed anew, wrongly; false when the values it gave are edited.
bool is_computed(const Fault& fault);
// True when the fault makes of a row the row times a positive factor.
bool keeps_order(const Fault& fault);

// The first position that can change: nothing is rotated at position 0, its key has none before it, and the first few
// positions see no more keys than a window has.
int first_changed(const Fault& fault);

// The columns of a head of that size that rope_partial rotates.
int columns_rotated(const Fault& fault, int head_dim);

// As which type wrong_type reads a weight that was written as `written`; the same when it leaves that weight alone.
BlockType type_read(const Fault& fault, BlockType written);

// The type that `accumulate` keeps sums in, BF16 unless it says F16; that `cache_type` keeps a cache in, else Q8_0.
BlockType type_kept(const Fault& fault);

}  // namespace moe_diag
