// SPDX-License-Identifier: MIT
#pragma once

#include "plugins/backends/cuda/decode.cuh"
#include "plugins/backends/cuda/reduce.cuh"

namespace moe_diag::cuda {

// RMSNorm of one row by a block of `threads`: make(k) gives a value, for long rows more than once; take(k, value) gets it
// normed, in the same thread.
template <class Make, class Take>
__device__ __forceinline__ void norm_row(const Make& make, const Matrix& w, int width, float eps, int threads,
                                         const Take& take) {
  constexpr int held = 4;  // values a thread keeps while the sum is made; threads_for() leaves it few more
  float some[held], weight[held], sum = 0.0f;
#pragma unroll
  for (int i = 0; i < held; ++i) {
    const int k = threadIdx.x + i * threads;
    some[i] = k < width ? make(k) : 0.0f;
    weight[i] = k < width ? decode_at(w.type, w.data, k) : 0.0f;
  }
#pragma unroll
  for (int i = 0; i < held; ++i) sum = fmaf(some[i], some[i], sum);
  for (int k = threadIdx.x + held * threads; k < width; k += threads) {
    const float value = make(k);
    sum = fmaf(value, value, sum);
  }
  const float mean = sum_of_threads(sum, threads) / static_cast<float>(width);
  const float factor = 1.0f / sqrtf(mean + eps);
#pragma unroll
  for (int i = 0; i < held; ++i)
    if (const int k = threadIdx.x + i * threads; k < width) take(k, some[i] * factor * weight[i]);
  for (int k = threadIdx.x + held * threads; k < width; k += threads)
    take(k, make(k) * factor * decode_at(w.type, w.data, k));
}

}  // namespace moe_diag::cuda
