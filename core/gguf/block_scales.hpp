// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstddef>

#include "core/api/blocks.hpp"

namespace moe_diag {

// A factor that a block keeps as f16, and what it is multiplied with.
struct BlockScale {
  int at;    // byte of the block
  int most;  // the largest integer, in size
};

// The factors of a type's blocks, whose layouts are in core/api/blocks.hpp. The largest |value| of an element is the
// sum of |factor| * most.
struct BlockScales {
  std::size_t count;  // 0: the element is a float itself
  std::array<BlockScale, 2> scale;
};

constexpr BlockScales scales_of(BlockType type) {
  switch (type) {
    case BlockType::f32:
    case BlockType::f16:
    case BlockType::bf16: break;
    case BlockType::q8_0: return {1, {{{offsetof(BlockQ8_0, d), 128}}}};
    case BlockType::q4_k: return {2, {{{offsetof(BlockQ4_K, d), 63 * 15}, {offsetof(BlockQ4_K, dmin), 63}}}};
    case BlockType::q6_k: return {1, {{{offsetof(BlockQ6_K, d), 128 * 32}}}};
  }
  return {0, {}};
}

}  // namespace moe_diag
