// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <vector>

#include "core/api/step.hpp"
#include "core/model/weight_scan.hpp"

namespace moe_diag {

// The blocks of weights that hold NaN or Inf.
std::vector<UnsoundBlocks> nonfinite_blocks(const std::vector<const Weight*>& weights);

// "; in the model, blk.2.ffn_down_exps.weight (Q6_K), expert 5: 2 of 256 blocks hold NaN, ..." for each, to be added to
// a cause; empty for none.
std::string text_of_blocks(const std::vector<UnsoundBlocks>& blocks);

}  // namespace moe_diag
