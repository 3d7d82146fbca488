// SPDX-License-Identifier: MIT
#pragma once

// Sixteen values of a weight row at a time: the same values as the decoders of core/api/blocks.hpp, faster.

#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>

#include "core/api/blocks.hpp"
#include "plugins/backends/cuda/kernels.hpp"

namespace moe_diag::cuda {

// Value k of a row, by the plain decoders.
__device__ inline float decode_at(BlockType type, const std::byte* row, std::int64_t k) {
  if (type == BlockType::f32) return reinterpret_cast<const float*>(row)[k];
  switch (type) {
    case BlockType::f32: break;
    case BlockType::f16: return float_from_f16(reinterpret_cast<const std::uint16_t*>(row)[k]);
    case BlockType::bf16: return float_from_bf16(reinterpret_cast<const std::uint16_t*>(row)[k]);
    case BlockType::q8_0: return decode<float>(reinterpret_cast<const BlockQ8_0*>(row)[k / 32], k % 32);
    case BlockType::q4_k: return decode<float>(reinterpret_cast<const BlockQ4_K*>(row)[k / 256], k % 256);
    case BlockType::q6_k: return decode<float>(reinterpret_cast<const BlockQ6_K*>(row)[k / 256], k % 256);
    default: return decode<float>(type, row, k);
  }
  return 0.0f;
}

// 8 bytes from any even address, which are there after ready(). Reads up to 2 bytes before and 4 after them.
struct Words {
  uint2 at;
  unsigned after;
  bool odd;

  __device__ __forceinline__ void fetch(const std::byte* p) {
    const auto address = reinterpret_cast<std::uintptr_t>(p);
    const auto* words = reinterpret_cast<const unsigned*>(address & ~std::uintptr_t{3});
    odd = (address & 2) != 0;
    at = {words[0], words[1]};
    after = words[2];
  }
  __device__ __forceinline__ void ready() {
    if (odd) at = {__funnelshift_r(at.x, at.y, 16), __funnelshift_r(at.y, after, 16)};
  }
};

// A whole number below 2^23 as float: cheaper than a conversion, and exact.
__device__ inline float small_float(unsigned n) { return __uint_as_float(0x4B000000u | n) - 8388608.0f; }

// Byte i of a word, less `bias`, as float, in two instructions; exact.
__device__ __forceinline__ float byte_float(unsigned word, int i, int bias) {
  return __uint_as_float(__byte_perm(word, 0x4B000000u, 0x7440u + static_cast<unsigned>(i))) -
         (8388608.0f + static_cast<float>(bias));
}

// By the conversion instruction, which is as exact as float_from_f16.
__device__ inline float fast_half(unsigned bits) {
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}
__device__ inline float half_at(const std::byte* p) { return fast_half(*reinterpret_cast<const std::uint16_t*>(p)); }

// Part `part` (0..3) of a segment as it stands in the row: values 8 part .. 8 part + 7 (h = 0) and 32 + 8 part ..
// 32 + 8 part + 7 (h = 1) of its 64; 0 past the end of the row. Fetching only loads, so that it can be under way while
// something else is computed; ready() unpacks what the values share; then come the values.
template <BlockType B>
struct Part {
  float w[16];

  __device__ __forceinline__ void fetch(const std::byte* row, std::int64_t cols, int at, int part) {
    if constexpr (B == BlockType::f32) {
      if (cols % segment == 0) return fetch_whole(reinterpret_cast<const float*>(row) + at * segment + part * 8);
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const std::int64_t k = std::int64_t{at} * 64 + i / 8 * 32 + part * 8 + i % 8;
      w[i] = 0.0f;
      if (k >= cols) continue;
      if constexpr (B == BlockType::f32) w[i] = reinterpret_cast<const float*>(row)[k];
      if constexpr (B == BlockType::f16) w[i] = half_at(row + k * 2);
      if constexpr (B == BlockType::bf16) w[i] = float_from_bf16(reinterpret_cast<const std::uint16_t*>(row)[k]);
    }
  }
  __device__ __forceinline__ void ready() {}
  __device__ __forceinline__ void ready_like(const Part&) {}
  // From an address that is a multiple of 16.
  __device__ __forceinline__ void fetch_whole(const float* from) {
#pragma unroll
    for (int i = 0; i < 16; i += 4) {
      const float4 some = *reinterpret_cast<const float4*>(from + i / 8 * 32 + i % 8);
      w[i] = some.x;
      w[i + 1] = some.y;
      w[i + 2] = some.z;
      w[i + 3] = some.w;
    }
  }
  __device__ __forceinline__ float value(int h, int i) const { return w[h * 8 + i]; }
};

template <>
struct Part<BlockType::q4_k> {
  uint4 head;
  uint2 q;
  int group;
  float scale[2], min[2];

  __device__ __forceinline__ void fetch(const std::byte* row, std::int64_t, int at, int part) {
    const std::byte* block = row + std::int64_t{at / 4} * 144;
    head = *reinterpret_cast<const uint4*>(block);
    q = *reinterpret_cast<const uint2*>(block + 16 + at % 4 * 32 + part * 8);
    group = at % 4 * 2;
  }
  __device__ __forceinline__ void ready() {
    const float d = fast_half(head.x & 0xFFFF), dmin = fast_half(head.x >> 16);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int s = (group + h) % 4 * 8;
      unsigned a = head.y >> s & 63, b = head.z >> s & 63;
      if (group >= 4) {
        a = (head.w >> s & 15) | (head.y >> s >> 6 & 3) << 4;
        b = (head.w >> s >> 4 & 15) | (head.z >> s >> 6 & 3) << 4;
      }
      scale[h] = d * small_float(a);
      min[h] = dmin * small_float(b);
    }
  }
  // Another part of the same segment is ready.
  __device__ __forceinline__ void ready_like(const Part& other) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      scale[h] = other.scale[h];
      min[h] = other.min[h];
    }
  }
  // The whole numbers q of values 4 j .. 4 j + 3, signed bytes.
  __device__ __forceinline__ unsigned integers(int h, int j) const {
    return (j == 0 ? q.x : q.y) >> h * 4 & 0x0F0F0F0F;
  }
  // scale * q is exact, so one fused operation rounds as ggml's two do.
  __device__ __forceinline__ float value(int h, int i) const {
    return fmaf(scale[h], byte_float(integers(h, i / 4), i % 4, 0), -min[h]);
  }
};

template <>
struct Part<BlockType::q6_k> {
  Words low[2], high;
  unsigned short d;
  signed char whole[2];
  int shift;
  float scale[2];

  __device__ __forceinline__ void fetch(const std::byte* row, std::int64_t, int at, int part) {
    const std::byte* block = row + std::int64_t{at / 4} * 210;
    const int half = at % 4 / 2, n = at % 2;
    d = *reinterpret_cast<const unsigned short*>(block + 208);
    high.fetch(block + 128 + half * 32 + part * 8);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      low[h].fetch(block + half * 64 + h * 32 + part * 8);
      whole[h] = static_cast<signed char>(block[192 + half * 8 + n * 4 + h * 2 + part / 2]);
    }
    shift = n * 4;
  }
  __device__ __forceinline__ void ready() {
    low[0].ready();
    low[1].ready();
    high.ready();
    // The bits of this half, in place: nibbles of `low`, pairs of `high`.
    low[0].at = {low[0].at.x >> shift & 0x0F0F0F0F, low[0].at.y >> shift & 0x0F0F0F0F};
    low[1].at = {low[1].at.x >> shift & 0x0F0F0F0F, low[1].at.y >> shift & 0x0F0F0F0F};
    high.at = {high.at.x >> shift, high.at.y >> shift};
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      low[h].at.x |= (high.at.x >> h * 2 & 0x03030303) << 4;
      low[h].at.y |= (high.at.y >> h * 2 & 0x03030303) << 4;
      scale[h] = fast_half(d) * static_cast<float>(whole[h]);
    }
  }
  __device__ __forceinline__ void ready_like(const Part&) { ready(); }
  // q - 32: six bits less 32 are the lower five, and the sign where the sixth was clear.
  __device__ __forceinline__ unsigned integers(int h, int j) const {
    const unsigned flipped = (j == 0 ? low[h].at.x : low[h].at.y) ^ 0x20202020;
    return flipped | (flipped & 0x20202020) * 6;
  }
  __device__ __forceinline__ float value(int h, int i) const {
    return scale[h] * byte_float(i < 4 ? low[h].at.x : low[h].at.y, i % 4, 32);
  }
};

template <>
struct Part<BlockType::q8_0> {
  Words q[2];
  unsigned short d[2];
  float scale[2];

  __device__ __forceinline__ void fetch(const std::byte* row, std::int64_t cols, int at, int part) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const bool there = at * 64 + h * 32 < cols;
      const std::byte* block = row + (std::int64_t{at} * 2 + (there ? h : 0)) * 34;
      d[h] = *reinterpret_cast<const unsigned short*>(block);
      q[h].fetch(block + 2 + part * 8);
      if (!there) d[h] = 0;
    }
  }
  __device__ __forceinline__ void ready() {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      q[h].ready();
      scale[h] = fast_half(d[h]);
    }
  }
  __device__ __forceinline__ void ready_like(const Part&) { ready(); }
  __device__ __forceinline__ unsigned integers(int h, int j) const { return j == 0 ? q[h].at.x : q[h].at.y; }
  __device__ __forceinline__ float value(int h, int i) const {
    return scale[h] * byte_float(integers(h, i / 4) ^ 0x80808080u, i % 4, 128);
  }
};

}  // namespace moe_diag::cuda
