// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/api/blocks.hpp"
#include "core/ops/matrix.hpp"

namespace moe_diag::host {

// How an engine rounds the weights of its products when it loads them, or before.
enum class WeightRounding {
  bf16,  // ties to even
  // FP8 E4M3 in blocks of 128 x 128, which have one scale: the largest of the block, at least 1e-4, over 448 in f32. At
  // the edges of a matrix blocks are smaller. A block with a value that is not finite becomes NaN.
  fp8_block,
  fp8_block_pow2,  // the same, the scale rounded up to a power of two
};

// The type that holds the rounded weights: BF16, or F32 for a product of an FP8 value and its scale.
BlockType type_of(WeightRounding rounding);

inline constexpr std::int64_t weight_block = 128;  // rows, and columns, that share a scale

// Writes rows [first, first + weight_block) of the matrix, or those up to its end, rounded, in type_of(rounding).
// `first` is a multiple of weight_block. Source: DeepGEMM, deep_gemm/utils/math.py, per_block_cast_to_fp8 (use_ue8m0
// for powers of two).
void round_rows(const Matrix& matrix, std::int64_t first, WeightRounding rounding, std::byte* out);

}  // namespace moe_diag::host
