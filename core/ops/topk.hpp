// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/api/params.hpp"
#include "core/ops/operator.hpp"
#include "core/ops/values.hpp"

namespace moe_diag::host {

struct Chosen {
  std::vector<std::int32_t> experts;  // the `used` most probable, best first, ties to the lower id
  Values weights;                     // their probabilities, or shares of the sum of these
};
// One position's choice from the probabilities of all experts.
Chosen topk(std::span<const double> probs, std::int64_t used, bool renormalised = true);

// The weights of experts chosen, from their probabilities: these as they are; their shares of the sum; by mistake,
// their softmax.
enum class Weighing { as_they_are, shares, softmax };
// Variants of what shares are of: transformers, DeepseekV3TopkRouter (plus 1e-20); llama.cpp, build_moe_ffn (clamped).
Values weighed(const Values& chosen, Weighing weighing, Denominator denominator = Denominator::sum);

}  // namespace moe_diag::host

namespace moe_diag {

extern const Operator topk_op;

// The weights that the step gives one row's experts, whoever chose them: from the probabilities of all of them.
host::Values weights_of_choice(const Step& step, std::span<const double> probs, std::span<const std::int32_t> experts);

// Whether the lane chose the experts that come after the best one, by its own probabilities.
bool chose_without_best(const StepCase& step_case, const ModelConfig& config, int row);

}  // namespace moe_diag
