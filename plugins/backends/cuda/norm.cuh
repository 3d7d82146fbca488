// SPDX-License-Identifier: MIT
#pragma once

#include "plugins/backends/cuda/decode.cuh"
#include "plugins/backends/cuda/reduce.cuh"

namespace moe_diag::cuda {

// RMSNorm of one row by a block of `threads`: make(k) gives a value, for long rows more than once; take(k, value) gets
// it normed, in the same thread. A thread keeps Held values while the sum is made; Whole: that is all there are.
template <int Held, bool Whole, class Make, class Take>
__device__ __forceinline__ void norm_row(const Make& make, const Matrix& w, int width, float eps, int threads,
                                         const Take& take) {
  float some[Held], weight[Held], sum = 0.0f;
#pragma unroll
  for (int i = 0; i < Held; ++i) {
    const int k = threadIdx.x + i * threads;
    some[i] = Whole || k < width ? make(k) : 0.0f;
    weight[i] = Whole || k < width ? decode_at(w.type, w.data, k) : 0.0f;
  }
#pragma unroll
  for (int i = 0; i < Held; ++i) sum = fmaf(some[i], some[i], sum);
  for (int k = threadIdx.x + Held * threads; !Whole && k < width; k += threads) {
    const float value = make(k);
    sum = fmaf(value, value, sum);
  }
  const float mean = sum_of_threads(sum, threads) / static_cast<float>(width);
  const float factor = 1.0f / sqrtf(mean + eps);
#pragma unroll
  for (int i = 0; i < Held; ++i)
    if (const int k = threadIdx.x + i * threads; Whole || k < width) take(k, some[i] * factor * weight[i]);
  for (int k = threadIdx.x + Held * threads; !Whole && k < width; k += threads)
    take(k, make(k) * factor * decode_at(w.type, w.data, k));
}

template <class Make, class Take>
__device__ __forceinline__ void norm_row(const Make& make, const Matrix& w, int width, float eps, int threads,
                                         const Take& take) {
  if (width == 2 * threads)  // what threads_for() gives to most rows
    norm_row<2, true>(make, w, width, eps, threads, take);
  else
    norm_row<4, false>(make, w, width, eps, threads, take);
}

}  // namespace moe_diag::cuda
