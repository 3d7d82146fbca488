// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/api/model.hpp"

// Weights whose scales are not their own: the mistake of a kernel that counts groups from another place.
namespace moe_diag::host {

// The weights that share a scale: of a K-quant and IQ4_XS a group within a block, else a block. 0: the type has none.
int scale_group(BlockType type);

// Whether a row of the weight has several scales of that type.
bool has_scales(const Weight& weight, BlockType type);

// A row of whole blocks, decoded: group g has the scale, and the min, of group g + shift. Groups are counted round
// within a block where a block has several, else within the row.
void decode_with_scales_of(BlockType type, const std::byte* row, int shift, std::span<double> out);

}  // namespace moe_diag::host
