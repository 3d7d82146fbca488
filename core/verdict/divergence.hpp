// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/api/stage.hpp"
#include "core/compare/explain_step.hpp"
#include "core/compare/routing.hpp"
#include "core/model/weight_scan.hpp"

namespace moe_diag {

// What a divergence is called.
enum class Cause : std::uint8_t {
  unexplained,        // none could be named: the text says why
  oracle_not_finite,  // the oracle itself holds NaN or Inf there: nothing can be held against it

  // A step computed other values than its inputs and its numerics allow.
  nonfinite_origin,  // its inputs are finite, its output is not, and nothing below explains it
  uniform_weights,   // these as explain_step() names them, with finite values or without
  dropped_expert,
  zero,
  bitflip,
  skipped,
  permutation,
  shifted_position,
  stale_kv,
  window,
  variant,
  function,
  eps,
  rope_theta,
  rotation,
  wrong_tensor,
  transposed,
  wrong_type,
  partial_sum,
  accumulation,
  cache_type,
  rounded_activations,
  scale,
  plain_operator,  // "operator": the step is wrong, and nothing above says how
  not_tried,       // the step is wrong; how was not looked into

  // Other experts were chosen than the oracle's.
  routing_tie,
  routing_drift,
  routing_real,

  // What follows from something else.
  nonfinite_inherited,  // the inputs were not finite already
  inherited,            // from a divergence further up

  drift,          // every step is at its expected error, the total is not
  numerics,       // the step itself is at its expected error: the claim asks for more than the numerics give
  recording,      // of a recording: the stage was recorded wrong, what the engine went on with is another
  other_weights,  // of a recording: the engine multiplied other weights than the file has
  reference,      // the lane named as `against` is farther from the oracle than the lane judged
};
std::string_view name_of(Cause cause);
Cause cause_of(StepCause cause);
// True for the causes that are one step's own error.
constexpr bool is_of_step(Cause cause) { return cause >= Cause::nonfinite_origin && cause <= Cause::not_tried; }
constexpr bool is_of_routing(Cause cause) { return cause >= Cause::routing_tie && cause <= Cause::routing_real; }

// NaN and Inf where the oracle is finite, in the rows of a site that were looked at.
struct Nonfinite {
  std::int64_t nan = 0, inf = 0, values = 0;  // values: all that were looked at
  // The first of them; `element` is of the row, or of the expert's slot.
  int position = -1, expert = -1;
  std::int64_t element = -1;

  std::int64_t count() const { return nan + inf; }
};

// One place where a lane parts from the oracle by itself, whatever it was given: a step that is wrong, or a choice of
// experts that differs. Steps are judged on the oracle's inputs, so none is the consequence of another one.
struct Divergence {
  Cause cause = Cause::unexplained;
  int lane = -1;                      // index into the contract's lanes
  int prompt = 0, position = 0;       // the first prompt and position it is seen at
  Site site;                          // the step's output
  int expert = -1;                    // of the first value that is wrong; -1: of no expert
  std::vector<std::string> tensors;   // whose columns are wrong, with their types: "blk.6.ffn_down_exps.weight (Q6_K)"
  std::string kernel;                 // what the lane's backend says of its kernels; may be empty
  std::string recorded;               // of a recording: file, tensor and offset of the first row that is wrong
  std::string text;                   // the cause in words; empty: nothing is known beyond its name
  double factor = 1;                  // of scale
  double error = 0;                   // rel_l2 of the step on the oracle's inputs, at its worst; NaN: not finite
  double expected = 0;                // rel_l2 that its numerics let it make there
  Nonfinite nonfinite;                // count() is 0: all is finite
  std::optional<Flip> flip;           // of routing: the first expert chosen in another's place
  Footprint footprint;                // of step errors, over all passes of that prompt
  bool explained = false;             // explain_step() looked at it
  std::vector<UnsoundBlocks> blocks;  // of oracle_not_finite: of the step's tensors in the file, those with NaN or Inf
};

// Why a falsified falsifier is.
struct Explanation {
  Cause cause = Cause::unexplained;
  int divergence = -1;  // index into the verdict's: its own, or what it is inherited from; -1: none
  std::string text;     // in words; of `unexplained`: why not
};

// Worst errors of one stage of a layer, over the rows that were looked at. NaN: not known, or not finite.
struct CurvePoint {
  int layer = -1;
  double free_error = 0;  // of the lane as the contract has it, against the oracle
  // The layer's step with the most expected errors, on the oracle's inputs.
  Stage worst_step;
  double step_error = 0;  // its error
  double expected = 0;    // its expected error, in the lane's numerics
};
struct Curve {
  int lane = -1;  // index into the contract's lanes
  Stage stage;
  std::vector<CurvePoint> points;  // by layer
};

// A site at which a lane, as the contract has it, holds what is not finite where the oracle's is.
struct NonfiniteSite {
  int lane = -1, prompt = 0;
  Site site;
  Nonfinite counts;
};

// What was found out about a run in which something is falsified.
struct Diagnosis {
  bool made = false;
  std::string reason;                    // why it was not made, or not for all; empty: nothing to say
  std::vector<Divergence> divergences;   // prompt after prompt, in forward order; those of routing among them
  std::vector<Curve> curves;             // by lane, then stage
  std::vector<NonfiniteSite> nonfinite;  // by lane and prompt, in forward order
};

// Of the experts at one layer.
struct LayerCoverage {
  int layer = 0;
  std::vector<std::int64_t> rows;  // per expert: how many rows of all prompts the oracle gave to it

  int run() const;  // experts that any row was given to
};

}  // namespace moe_diag
