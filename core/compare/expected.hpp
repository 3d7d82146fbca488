// SPDX-License-Identifier: MIT
#pragma once

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

}  // namespace moe_diag
