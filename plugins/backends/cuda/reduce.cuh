// SPDX-License-Identifier: MIT
#pragma once

// Sums and maxima over the first `threads` threads of a block, by halves: the order depends on that number alone. All
// threads of the block call them; all get the same.
namespace moe_diag::cuda {

__device__ inline float sum_of_threads(float value, int threads) {
  __shared__ float warps[32];
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  __syncthreads();
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  float total = 0.0f;
  for (int i = 0; i < threads / 32; ++i) total += warps[i];
  return total;
}

// A NaN never wins; what follows turns it into NaN anyway.
__device__ inline float most_of_threads(float value, int threads) {
  __shared__ float warps[32];
  for (int step = 16; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(~0u, value, step));
  __syncthreads();
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  float most = warps[0];
  for (int i = 1; i < threads / 32; ++i) most = fmaxf(most, warps[i]);
  return most;
}

// Threads that share the sum over a row: a matter of its length alone, as the promises want it.
__host__ __device__ inline int threads_for(int width) {
  const int threads = (width + 63) / 64 * 32;
  return threads < 32 ? 32 : threads > 1024 ? 1024 : threads;
}

}  // namespace moe_diag::cuda
