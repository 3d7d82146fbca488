// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <vector>

#include "core/model/model.hpp"
#include "core/model/weight_scan.hpp"

namespace moe_diag {

// `inspect --weights`: looks at every block of the model, with a line of progress on a terminal. Throws
// Error(environment) when it is interrupted.
std::vector<UnsoundBlocks> scan_model(const Model& model);

// The findings as a table, or one line when all weights are sound.
std::string weights_text(const Model& model, const std::vector<UnsoundBlocks>& unsound);

}  // namespace moe_diag
