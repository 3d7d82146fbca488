// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/api/blocks.hpp"
#include "core/arch/architecture.hpp"

namespace moe_diag {

// One tensor of a synthetic model.
struct SyntheticTensor {
  TensorSpec spec;
  BlockType type = BlockType::f32;
  float scale = 1;  // factor of the standard deviation its role has

  std::size_t row_bytes() const;
  std::int64_t all_rows() const { return spec.rows * spec.experts; }
};

// Writes rows first..last (end excluded, counted over all experts) of a tensor to `out`. Each value depends on the
// seed, the tensor's name and its place alone, so any rows may be made in any order.
void make_rows(const SyntheticTensor& tensor, std::uint64_t seed, std::int64_t first, std::int64_t last,
               std::byte* out);

}  // namespace moe_diag
