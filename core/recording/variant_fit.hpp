// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <vector>

#include "core/api/model.hpp"
#include "core/model/program.hpp"
#include "core/ops/variant.hpp"
#include "core/recording/recording.hpp"

namespace moe_diag {

// A form of a step that fits the recording clearly better than the model's own.
struct FittedVariant {
  const Variant* variant = nullptr;
  double error = 0, plain = 0;  // rel_l2 of the recorded outputs, as that form gives them and as the model's does
};

// Tries all variants at the last positions that are recorded, of the first layer that has the step and what it reads.
std::vector<FittedVariant> fit_variants(const Recording& recording, const ModelConfig& config, const Program& program);

// "rope_angles multiplied fits: 1.1e-07 off, 2e-06 as the model defines it"
std::string text_of(const FittedVariant& fit);

}  // namespace moe_diag
