// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "core/api/model.hpp"
#include "core/api/step.hpp"

namespace moe_diag {

// The relative L2 error, rms over rows, that one step is expected to make in `numerics` (f64, f32, bf16, q8_k, q8_1)
// when its inputs are the oracle's, rounded to the type of the lane's stage values. Derived from sizes and types alone,
// for rows whose values look drawn from a bell curve: docs/numerics.md has the formulas, and beside them what was
// measured. `keys` is how many positions the row attends to, its own included: for scores, softmax and mix.
//
// Never 0: a step that is exact in its types (an embedding of Q8_0) counts as one rounding. Of topk it is the error of
// the router's weights; chosen experts have none. Null for numerics that are not known here.
std::optional<double> expected_error(std::string_view numerics, const Step& step, const ModelConfig& config, int keys);

// The rounding of activations that a matmul with a weight reads.
enum class OperandReading { as_they_are, bf16, q8_k, q8_1 };

struct PredictedNumerics {
  OperandReading reading = OperandReading::as_they_are;
  double unit = 0;  // square of the error of rounding to a stage value
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
