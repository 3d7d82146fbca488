// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/api/stage.hpp"
#include "core/api/tensor.hpp"
#include "core/compare/footprint.hpp"
#include "core/forward/program.hpp"
#include "core/model/model.hpp"

namespace moe_diag {

// What a step that computed other values than the oracle did wrongly. In the order of simplicity: of causes that
// explain it equally well, the first is named.
enum class StepCause : std::uint8_t {
  none,                 // every row is within a few times its expected error
  uniform_weights,      // all chosen experts count the same
  dropped_expert,       // one chosen expert counts nothing
  zero,                 // zeros instead of values
  bitflip,              // one element has one bit changed
  skipped,              // the operator, or a part of it, was left out: a normalisation, a weight, the mask
  permutation,          // the right values in other places, or other pairs of values rotated together
  shifted_position,     // the values or the angle of a neighbouring position, or attention to one key more or fewer
  stale_kv,             // the cache held something else than was written to it: at the own position, at one, at all
  rope_theta,           // rotated with another base
  wrong_tensor,         // another expert's weights, another layer's, or another tensor's of the same shape
  transposed,           // the weight read column by column
  wrong_type,           // the weight's bytes decoded as another block type
  rounded_activations,  // what the product reads, or what the step wrote, was rounded to 8 or 16 bits
  scale,                // all values multiplied by one factor
  plain_operator,       // none of these
};
std::string_view name_of(StepCause cause);  // "operator" for the last

// A step as one lane computed it, and what the oracle computed. All tensors are on the host and hold the same
// consecutive rows; only the second input of scores and mix holds all positions from 0 to that of the last row.
struct StepCase {
  const Step* step = nullptr;
  Stage stage = Stage::embedding;        // the output of the step that is looked at
  std::array<Tensor, 2> in;              // as the lane had them, as step->in; null: not known
  std::span<const std::int32_t> tokens;  // of the rows; only for embed
  Tensor a, b;                           // the lane's output and the oracle's
  Tensor routing_a, routing_b;           // moe_router_indices, as each lane had them; only for per-expert stages
  int first_position = 0;                // of row 0
  std::string numerics;                  // of the lane; see expected_error()
};

struct StepExplanation {
  StepCause cause = StepCause::none;
  std::string text;   // the cause in words; empty for none and plain_operator
  double factor = 1;  // of scale
  double error = 0;   // rms over the rows that fail, in expected errors
  double left = 0;    // the same, of what the cause does not explain
  Footprint footprint;
};

// A row, or an expert's slot of a row, fails when its error is beyond `failing_error` expected errors. A cause is named
// only when every one that fails is then within `explained_error`, and nothing else comes close to explaining it.
// Products wider than the budget are checked at elements spread evenly over the row. The same case gives the same
// answer. Throws Error(environment) when the tensors do not fit the step.
inline constexpr double failing_error = 10, explained_error = 8;
StepExplanation explain_step(const StepCase& step_case, const Model& model, const Program& program);

// A step is explained from one pass. Where a later pass, from `position` on, has another cause or none, the
// step is a plain operator, and the text says what fits the one pass.
void add_later_pass(StepExplanation& first, const StepExplanation& later, int position);

}  // namespace moe_diag
