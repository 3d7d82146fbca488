// SPDX-License-Identifier: MIT
#include "core/ops/block_scales.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/api/blocks.hpp"
#include "core/ops/sizes.hpp"

namespace moe_diag::host {
namespace {

int turned(int group, int shift, int count) { return ((group + shift) % count + count) % count; }

// ---- several groups a block ----------------------------------------------------------------------------------------

void turn(BlockQ6_K& block, int shift) {
  std::rotate(block.groups, block.groups + turned(0, shift, 16), block.groups + 16);
}
void turn(BlockQ2_K& block, int shift) {
  std::rotate(block.groups, block.groups + turned(0, shift, 16), block.groups + 16);
}

void turn(BlockQ3_K& block, int shift) {
  const BlockQ3_K own = block;
  std::fill(std::begin(block.groups), std::end(block.groups), std::uint8_t{0});
  for (int g = 0; g < 16; ++g) {
    const int scale = q3_k_scale(own.groups, turned(g, shift, 16)), low = (scale & 0xF) << (g / 8 * 4);
    block.groups[g % 8] = static_cast<std::uint8_t>(block.groups[g % 8] | low);
    block.groups[8 + g % 4] = static_cast<std::uint8_t>(block.groups[8 + g % 4] | (scale >> 4) << (g / 4 * 2));
  }
}

// Six bits of scale and min each: those of the last four groups are split.
template <class Block>
void turn_pairs(Block& block, int shift) {
  const Block own = block;
  std::uint8_t* s = block.groups;
  std::fill_n(s, 12, std::uint8_t{0});
  const auto add = [&](int at, int bits) { s[at] = static_cast<std::uint8_t>(s[at] | bits); };
  for (int g = 0; g < 8; ++g) {
    const ScaleMin of = q4_k_scale_min(own.groups, turned(g, shift, 8));
    const int scale = of.scale, min = of.min;
    if (g < 4) {
      add(g, scale);
      add(g + 4, min);
    } else {
      add(g + 4, (scale & 0xF) | (min & 0xF) << 4);
      add(g - 4, scale >> 4 << 6);
      add(g, min >> 4 << 6);
    }
  }
}
void turn(BlockQ4_K& block, int shift) { turn_pairs(block, shift); }
void turn(BlockQ5_K& block, int shift) { turn_pairs(block, shift); }

void turn(BlockIQ4_XS& block, int shift) {
  const BlockIQ4_XS own = block;
  std::fill(std::begin(block.low), std::end(block.low), std::uint8_t{0});
  block.high = 0;
  for (int g = 0; g < 8; ++g) {
    const int from = turned(g, shift, 8);
    const int low = own.low[from / 2] >> (from % 2 * 4) & 0xF, high = own.high >> (from * 2) & 3;
    block.low[g / 2] = static_cast<std::uint8_t>(block.low[g / 2] | low << (g % 2 * 4));
    block.high = static_cast<std::uint16_t>(block.high | high << (g * 2));
  }
}

// ---- one group a block ---------------------------------------------------------------------------------------------

template <class Block>
void take_scale(Block& block, const Block& from) {
  if constexpr (requires { block.e; }) block.e = from.e;
  if constexpr (requires { block.m; }) block.m = from.m;
  if constexpr (requires { block.d; }) block.d = from.d;
}

template <class Block>
constexpr bool has_groups = requires(Block b) {
  turn(b, 1);
};

}  // namespace

int scale_group(BlockType type) {
  int group = 0;
  with_block(type, [&](auto block) {
    using Block = decltype(block);
    if (Block::scales.count == 0) return;
    const bool in_sixteens = type == BlockType::q2_k || type == BlockType::q3_k || type == BlockType::q6_k;
    group = !has_groups<Block> ? Block::elements : in_sixteens ? 16 : 32;
  });
  return group;
}

bool has_scales(const Weight& weight, BlockType type) {
  const int group = scale_group(type);
  return group > 0 && weight.cols > group;
}

void decode_with_scales_of(BlockType type, const std::byte* row, int shift, std::span<double> out) {
  with_block(type, [&](auto first) {
    using Block = decltype(first);
    const std::size_t each = at(Block::elements);
    std::vector<Block> blocks(out.size() / each);
    std::memcpy(blocks.data(), row, blocks.size() * sizeof(Block));
    const std::vector<Block> own = blocks;
    for (std::size_t b = 0; b < blocks.size(); ++b) {
      if constexpr (has_groups<Block>)
        turn(blocks[b], shift);
      else
        take_scale(blocks[b], own[at(turned(static_cast<int>(b), shift, static_cast<int>(own.size())))]);
      for (std::size_t i = 0; i < each; ++i) out[b * each + i] = decode<double>(blocks[b], static_cast<int>(i));
    }
  });
}

}  // namespace moe_diag::host
