// SPDX-License-Identifier: MIT
#pragma once

// Sixteen values of a weight row at a time: the same values as the decoders of core/api/blocks.hpp, faster.

#include <cstddef>
#include <cstdint>

#include "core/api/blocks.hpp"

namespace moe_diag::cuda {

// 2 words from any address. Reads up to 3 bytes past them.
__device__ inline uint2 load_words(const std::byte* p) {
  const auto address = reinterpret_cast<std::uintptr_t>(p);
  const auto* words = reinterpret_cast<const unsigned*>(address & ~std::uintptr_t{3});
  const unsigned shift = static_cast<unsigned>(address & 3) * 8;
  const unsigned a = words[0], b = words[1], c = shift ? words[2] : 0;
  return {__funnelshift_r(a, b, shift), __funnelshift_r(b, c, shift)};
}

__device__ inline unsigned byte_of(uint2 words, int i) { return (i < 4 ? words.x : words.y) >> (i % 4 * 8); }

// A whole number below 2^23 as float: cheaper than a conversion, and exact.
__device__ inline float small_float(unsigned n) { return __uint_as_float(0x4B000000u | n) - 8388608.0f; }

__device__ inline float half_at(const std::byte* p) {
  return float_from_f16(*reinterpret_cast<const std::uint16_t*>(p));
}

// Part `part` (0..3) of a segment: values 8 part .. 8 part + 7 and 32 + 8 part .. 32 + 8 part + 7 of its 64; 0 past the
// end of the row.
template <BlockType B>
__device__ __forceinline__ void load_part(const std::byte* row, std::int64_t cols, int at, int part, float (&w)[16]) {
  if constexpr (B == BlockType::q4_k) {
    const std::byte* block = row + std::int64_t{at / 4} * 144;
    const uint4 head = *reinterpret_cast<const uint4*>(block);
    const unsigned scales[3] = {head.y, head.z, head.w};
    const uint2 q = *reinterpret_cast<const uint2*>(block + 16 + at % 4 * 32 + part * 8);
    const float d = float_from_f16(static_cast<std::uint16_t>(head.x)),
                dmin = float_from_f16(static_cast<std::uint16_t>(head.x >> 16));
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int g = at % 4 * 2 + h, s = g % 4 * 8;
      unsigned scale = scales[0] >> s & 63, min = scales[1] >> s & 63;
      if (g >= 4) {
        scale = (scales[2] >> s & 15) | (scales[0] >> s >> 6 & 3) << 4;
        min = (scales[2] >> s >> 4 & 15) | (scales[1] >> s >> 6 & 3) << 4;
      }
      const float a = d * small_float(scale), b = -(dmin * small_float(min));
      // scale * q is exact, so one fused operation rounds as ggml's two do.
#pragma unroll
      for (int i = 0; i < 8; ++i) w[h * 8 + i] = fmaf(a, small_float(byte_of(q, i) >> h * 4 & 15), b);
    }
  } else if constexpr (B == BlockType::q6_k) {
    const std::byte* block = row + std::int64_t{at / 4} * 210;
    const int half = at % 4 / 2, n = at % 2;
    const float d = half_at(block + 208);
    const uint2 high = load_words(block + 128 + half * 32 + part * 8);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const uint2 low = load_words(block + half * 64 + h * 32 + part * 8);
      const auto scale = static_cast<signed char>(block[192 + half * 8 + n * 4 + h * 2 + part / 2]);
      const float a = d * static_cast<float>(scale);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const unsigned q = (byte_of(low, i) >> n * 4 & 15) | (byte_of(high, i) >> (n * 2 + h) * 2 & 3) << 4;
        w[h * 8 + i] = a * (small_float(q) - 32.0f);
      }
    }
  } else if constexpr (B == BlockType::q8_0) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const bool there = std::int64_t{at} * 64 + h * 32 < cols;
      const std::byte* block = row + (std::int64_t{at} * 2 + h) * 34;
      const float d = there ? half_at(block) : 0.0f;
      const uint2 q = there ? load_words(block + 2 + part * 8) : uint2{0, 0};
#pragma unroll
      for (int i = 0; i < 8; ++i) w[h * 8 + i] = d * static_cast<float>(static_cast<signed char>(byte_of(q, i)));
    }
  } else {
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const std::int64_t k = std::int64_t{at} * 64 + h * 32 + part * 8 + i;
        float value = 0.0f;
        if (k < cols) {
          if constexpr (B == BlockType::f32) value = reinterpret_cast<const float*>(row)[k];
          if constexpr (B == BlockType::f16) value = half_at(row + k * 2);
          if constexpr (B == BlockType::bf16)
            value = float_from_bf16(reinterpret_cast<const std::uint16_t*>(row)[k]);
        }
        w[h * 8 + i] = value;
      }
  }
}

}  // namespace moe_diag::cuda
