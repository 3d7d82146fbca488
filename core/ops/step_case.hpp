// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/api/stage.hpp"
#include "core/api/step.hpp"
#include "core/api/tensor.hpp"
#include "core/ops/predicted.hpp"
#include "core/ops/values.hpp"

namespace moe_diag {

// The mistake of a step that computed other values than the oracle. In the order of simplicity: of causes that
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
  window,               // attention to the last keys only, or to another number of them
  variant,              // another public form of the same mathematics, which a lane may state
  function,             // another activation, gating or normalisation
  eps,                  // normalised with another eps
  rope_theta,           // rotated with another base
  rotation,             // rotated by other angles: positions divided, YaRN, some columns only, the other way
  wrong_tensor,         // another expert's weights, another layer's, or another tensor's of the same shape
  transposed,           // the weight read column by column
  wrong_type,           // the weight's bytes decoded as another block type
  partial_sum,          // columns missing from the sums of a product
  accumulation,         // sums kept in 16 bits
  cache_type,           // keys or values rounded as in a cache of another type
  rounded_activations,  // what the product reads, or what the step wrote, was rounded to 8 or 16 bits
  scale,                // all values, or the logits of a softmax, multiplied by one factor
  plain_operator,       // none of these
};
std::string_view name_of(StepCause cause);  // "operator" for the last

// A step as one lane computed it, and what the oracle computed. All tensors are on the host and hold the same
// consecutive rows; only the second input of scores and mix holds all positions from 0 to that of the last row.
struct StepCase {
  const Step* step = nullptr;
  Stage stage;                           // the output of the step that is looked at
  std::array<Tensor, most_inputs> in;    // as the lane had them, as step->in; null: not known
  std::span<const std::int32_t> tokens;  // of the rows; only for embed
  Tensor a, b;                           // the lane's output and the oracle's
  Tensor routing_a, routing_b;           // moe_router_indices, as each lane had them; only for per-expert stages
  int first_position = 0;                // of row 0
  LaneNumerics numerics = "";            // of the lane; see expected_error()
  LaneNumerics oracle = "f64";
  std::span<const Step> together = {};  // the steps that a kernel computed at once, this one last; or none
};

// A row, or an expert's slot of a row, fails when its error is beyond `failing_error` expected errors. A cause is named
// only when every one that fails is then within `explained_error`, and nothing else comes close to explaining it.
inline constexpr double failing_error = 10, explained_error = 8;

// Expected errors beyond which an element of a unit that fails is wrong.
inline constexpr double element_error = 8;

// Elements to be compared together: `n` of them, at `a` in one tensor and at `b` in the other.
struct Segment {
  std::int64_t a = 0, b = 0, n = 0;
};

// What of a step's output is compared together: the columns of one weight in one row, or one expert's slot of a row.
struct StepUnit {
  int row = 0;
  int slot = -1, expert = -1;     // -1: not of one expert
  std::size_t part = 0;           // of the weights that write side by side
  std::int64_t first = 0;         // column of element 0
  std::vector<Segment> segments;  // all of the same length: one, or a head each
  std::int64_t size = 0;          // elements
  double expected = 0;            // relative error
  double rms = 0;                 // of the oracle's elements
  double error = 0;               // |a - b| / |b|, in expected errors; infinite for new non-finite values
  bool fails = false;

  std::int64_t run() const { return segments[0].n; }
  std::int64_t in_a(std::int64_t i) const { return segments[static_cast<std::size_t>(i / run())].a + i % run(); }
  std::int64_t in_b(std::int64_t i) const { return segments[static_cast<std::size_t>(i / run())].b + i % run(); }
  // How far element i, of that size, may be off when the unit's error is `errors` expected ones.
  double tolerance(double errors, double size_of_element) const {
    return errors * expected * (size_of_element > rms ? size_of_element : rms);
  }
};

using FailingUnits = std::vector<const StepUnit*>;  // of one part, at least one

// How far each element of a unit is off, in expected errors.
std::vector<double> errors_of_elements(const StepCase& step_case, const StepUnit& unit);

// False when all finite values of the units are the oracle's, rounded to the lane's type: what makes them fail is an
// overflow, and of nothing else there is evidence.
bool differs_where_finite(const StepCase& step_case, const FailingUnits& units);

// Elements of a unit that are farther off than its expected error lets them be, ascending; those that are small beside
// `of_the_worst` times the worst one are left out.
std::vector<std::int64_t> wrong_elements(const StepCase& step_case, const StepUnit& unit, double of_the_worst);

}  // namespace moe_diag
