// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/conformance/tried_models.hpp"
#include "core/ops/predicted.hpp"
#include "core/ops/values.hpp"

namespace moe_diag {

// The stages of a pass from position 0, in double.
struct PlainPass {
  int rows = 0;
  std::vector<std::int32_t> tokens;
  std::vector<host::Values> of;         // by stage
  std::vector<host::Values> choices{};  // of each step that chooses experts

  // The values of one row.
  std::span<const double> row(Stage stage, int r) const;
};

PlainPass plain_pass(const TriedModel& model, std::span<const std::int32_t> tokens);

// Computes the steps with the plain operators.
void compute_plainly(const TriedModel& model, std::span<const Step> steps, PlainPass& pass);

// The relative error that each row of the last output may have after these steps: ten times what is left there of noise
// that each step adds, of the size that its numerics predict. Infinite for a row whose choice of experts a few times
// that noise changes. `before` has what the steps read.
std::vector<double> allowed_errors(const TriedModel& model, std::span<const Step> steps, const PlainPass& before,
                                   const LaneNumerics& lane);

}  // namespace moe_diag
