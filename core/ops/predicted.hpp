// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/api/backend.hpp"
#include "core/api/model.hpp"
#include "core/api/step.hpp"
#include "core/ops/numerics.hpp"

namespace moe_diag {

// The numerics of a lane, as far as they decide how large its rounding errors are.
struct LaneNumerics {
  std::string name;                                              // f64, f32, bf16, q8_k, q8_1
  std::string reads, weights, accumulator, kv_cache, kv_rotate;  // as in Description
  DType values = DType::f32;                                     // of stages, where `storage` does not say otherwise
  std::vector<DType> storage;                                    // by stage; may be empty

  // The named ones, with all that they have; implicit, since a name is all that most lanes have.
  LaneNumerics(const char* named) : LaneNumerics(std::string(named)) {}  // NOLINT(google-explicit-constructor)
  LaneNumerics(std::string named);                                       // NOLINT(google-explicit-constructor)
  explicit LaneNumerics(const Description& d)
      : name(d.numerics),
        reads(d.reads),
        weights(d.weights),
        accumulator(d.accumulator),
        kv_cache(d.kv_cache),
        kv_rotate(d.kv_rotate),
        values(d.values),
        storage(d.storage) {}

  DType stored(Stage stage) const { return storage.empty() ? values : storage[stage.index()]; }
  // Whether an input of the step is kept in fewer bits than in f64, and by the oracle in another type.
  bool rounds_input(const Step& step, std::size_t input, const LaneNumerics& oracle) const;
};

// The relative L2 error, rms over rows, that one step is expected to make in a lane's numerics when its inputs are the
// oracle's, rounded to the types that the lane keeps them in. Derived from sizes and types alone, for rows whose values
// look drawn from a bell curve: docs/numerics.md has the formulas, and beside them what was measured. `keys` is how
// many positions the row attends to, its own included: for scores, softmax and mix. `from_inputs`: the square of what
// the rounding of inputs alone moves the output by, where it was computed; else it is estimated.
//
// Never 0: a step that is exact in its types (an embedding of Q8_0) counts as one rounding. Of topk it is the error of
// the router's weights; chosen experts have none. Null for numerics that are not known here.
std::optional<double> expected_error(const LaneNumerics& lane, const Step& step, const ModelConfig& config, int keys,
                                     const LaneNumerics& oracle = "f64", std::optional<double> from_inputs = {});

// The same of several steps that a kernel computes at once, where the last is expected to err by `expected`: as if the
// error of each went through the others as it is.
double expected_of_all(std::span<const Step> steps, double expected, const LaneNumerics& lane,
                       const ModelConfig& config, int keys, const LaneNumerics& oracle = "f64");

// That error of values of a root mean square: those below 2^-14 have steps in f16 that are as wide as there.
double expected_of_values(double expected, DType stored, double rms);

// The rms relative error of rounding to a type.
double rounding_of(DType type);

// True for the numerics with a name whose products read rounded activations by themselves.
bool rounds_activations(std::string_view numerics);

// True when an input of the step is rounded to 16 bits, and its values decide what that does to the output: they may
// cancel, or stand in an exponent. It is computed then; for a softmax in f32 as well, whose logits may be large.
bool needs_inputs(const LaneNumerics& lane, const Step& step, const LaneNumerics& oracle);

// How products read their operands and add; null: as they are.
struct OperandNumerics {
  const Reads* reads = nullptr;              // activations
  const WeightType* weights = nullptr;       // weights
  const Accumulator* accumulator = nullptr;  // their sums; null: in partial sums of stage values
};
struct PredictedNumerics {
  OperandNumerics lane, oracle;
  double unit = 0;  // square of the error of rounding to a stage value in f32 or f64
};

// Errors are relative and independent, so their squares are added. docs/numerics.md derives each of these.
inline double square(double x) { return x * x; }

// Roundings of a sum of n terms of either sign, in the partial sums of the cpu lanes' rule and a tree of four levels.
// Other rules differ by less than the bound allows.
inline constexpr int partial_sums = 16;
inline double walk(std::int64_t n) { return static_cast<double>(n) / partial_sums / 2 + 4; }
// The same of n terms of one sign, of which the errors of the partial sums average out.
inline double positive_walk(std::int64_t n) { return static_cast<double>(n) / square(partial_sums) / 3 + 15.0 / 8; }

// The squared error of a matmul. Several weights write side by side: it is the mean over all rows.
double squared_error_of_product(const Step& step, const ModelConfig& config, const PredictedNumerics& numerics,
                                int keys);

// The squared error of a step that rounds `Roundings` times to a stage value, at any size.
template <int Roundings>
double squared_error_of(const Step&, const ModelConfig&, const PredictedNumerics& numerics, int) {
  return Roundings * numerics.unit;
}

}  // namespace moe_diag
