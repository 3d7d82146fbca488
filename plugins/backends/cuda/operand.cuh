// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>

#include "plugins/backends/cuda/mma.cuh"

// What a product reads of its vectors: eight values a thread, rounded or quantised.
namespace moe_diag::cuda {

// Eight values of a row from `k` on, 0 past its end.
__device__ __forceinline__ void load_eight(const float* row, std::int64_t k, std::int64_t cols, bool aligned,
                                           float (&x)[8]) {
  if (aligned && k + 8 <= cols) {
    const float4 a = *reinterpret_cast<const float4*>(row + k), b = *reinterpret_cast<const float4*>(row + k + 4);
    x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) x[i] = k + i < cols ? row[k + i] : 0.0f;
}

// Rows can be read 16 bytes at a time.
__device__ __forceinline__ bool aligned_rows(const float* x, std::int64_t stride) {
  return stride % 4 == 0 && reinterpret_cast<std::uintptr_t>(x) % 16 == 0;
}

__device__ __forceinline__ uint4 eight_bf16(const float (&x)[8]) {
  return {two_bf16(x[0], x[1]), two_bf16(x[2], x[3]), two_bf16(x[4], x[5]), two_bf16(x[6], x[7])};
}

// Scale of a block of 32 and scale times the sum of its integers.
struct BlockScale {
  float scale, scaled_sum;
};

// Four neighbouring lanes hold a block of 32: scale = largest magnitude / 127, q = x / scale rounded to nearest even.
// A NaN or an infinity makes the scale one, and so every product with the block NaN.
__device__ __forceinline__ uint2 eight_int8(const float (&x)[8], BlockScale& block) {
  unsigned most = 0;  // as bits, which order magnitudes, with NaN above all
#pragma unroll
  for (int i = 0; i < 8; ++i) most = max(most, __float_as_uint(x[i]) & 0x7FFFFFFFu);
  most = max(most, __shfl_xor_sync(~0u, most, 1));
  most = max(most, __shfl_xor_sync(~0u, most, 2));
  block.scale = __uint_as_float(most) / 127.0f;
  int sum = 0;
  unsigned words[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int q = block.scale > 0.0f ? max(-127, min(127, __float2int_rn(x[i] / block.scale))) : 0;
    sum += q;
    words[i / 4] |= (static_cast<unsigned>(q) & 0xFFu) << i % 4 * 8;
  }
  sum += __shfl_xor_sync(~0u, sum, 1);
  sum += __shfl_xor_sync(~0u, sum, 2);
  block.scaled_sum = block.scale * static_cast<float>(sum);
  return {words[0], words[1]};
}

}  // namespace moe_diag::cuda
