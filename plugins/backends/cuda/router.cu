// SPDX-License-Identifier: MIT
#include <algorithm>

#include "plugins/backends/cuda/kernels.hpp"
#include "plugins/backends/cuda/launch.cuh"
#include "plugins/backends/cuda/reduce.cuh"

// From logits to experts, and from experts to the order in which products take their vectors.
namespace moe_diag::cuda {
namespace {

// The first `seen` of a row by the whole block; put(k, value) gets each.
template <class Put>
__device__ __forceinline__ void softmax_row(const float* x, int seen, const Put& put) {
  constexpr int held = 4;  // values a thread keeps
  const int threads = blockDim.x;
  float some[held], most = -INFINITY;
#pragma unroll
  for (int i = 0; i < held; ++i) {
    const int k = threadIdx.x + i * threads;
    const float value = x[min(k, seen - 1)];
    some[i] = k < seen ? value : -INFINITY;
  }
#pragma unroll
  for (int i = 0; i < held; ++i) most = fmaxf(most, some[i]);
  for (int k = threadIdx.x + held * threads; k < seen; k += threads) most = fmaxf(most, x[k]);
  most = most_of_threads(most, threads);
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < held; ++i)
    if (threadIdx.x + i * threads < seen) sum += some[i] = expf(some[i] - most);
  for (int k = threadIdx.x + held * threads; k < seen; k += threads) sum += expf(x[k] - most);
  sum = sum_of_threads(sum, threads);
#pragma unroll
  for (int i = 0; i < held; ++i)
    if (const int k = threadIdx.x + i * threads; k < seen) put(k, some[i] / sum);
  for (int k = threadIdx.x + held * threads; k < seen; k += threads) put(k, expf(x[k] - most) / sum);
}

__global__ void softmax_rows(const float* x, int groups, int width, const int* first, float* y) {
  wait_for_earlier();
  x += std::int64_t{blockIdx.x} * width;
  y += std::int64_t{blockIdx.x} * width;
  const int seen = first ? *first + static_cast<int>(blockIdx.x) / groups + 1 : width;
  softmax_row(x, seen, [&](int k, float value) { y[k] = value; });
  for (int k = seen + threadIdx.x; k < width; k += blockDim.x) y[k] = 0.0f;
}

// The largest and the smallest of a warp's numbers, in all lanes.
__device__ __forceinline__ unsigned most_of_warp(unsigned value) {
#if __CUDA_ARCH__ >= 800
  return __reduce_max_sync(~0u, value);
#else
  for (int step = 16; step > 0; step /= 2) value = max(value, __shfl_xor_sync(~0u, value, step));
  return value;
#endif
}
__device__ __forceinline__ unsigned least_of_warp(unsigned value) { return ~most_of_warp(~value); }

// A number that orders as the value does, above 1. A NaN is 1: it is less than every value.
__device__ __forceinline__ unsigned rank_of(float value) {
  if (isnan(value)) return 1;
  if (value == 0.0f) value = 0.0f;  // -0 is 0
  const unsigned bits = __float_as_uint(value);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// One warp a row; `probs` and `ranks` are in shared memory, ranks[e] as rank_of(probs[e]). The first free expert, when
// it is NaN, wins: the ids stay valid and distinct.
__device__ void topk_row(const float* probs, unsigned* ranks, int experts, int used, bool renormalised,
                         std::int32_t* ids, float* weights) {
  constexpr unsigned taken = 0;
  const int lane = threadIdx.x;
  float total = 0.0f;
  int free = 0;  // the first expert not taken
  for (int slot = 0; slot < used; ++slot) {
    while (ranks[free] == taken) ++free;
    int best = free;
    if (ranks[free] != 1) {
      unsigned rank = 0, expert = ~0u;  // of this lane's, the first of the best
      for (int e = lane; e < experts; e += 32)
        if (ranks[e] > rank) {
          rank = ranks[e];
          expert = static_cast<unsigned>(e);
        }
      const unsigned most = most_of_warp(rank);
      best = static_cast<int>(least_of_warp(rank == most ? expert : ~0u));
    }
    __syncwarp();
    const float value = probs[best];
    if (lane == 0) {
      ids[slot] = best;
      weights[slot] = value;
      ranks[best] = taken;
    }
    __syncwarp();
    total += value;
  }
  if (!renormalised) return;
  for (int slot = lane; slot < used; slot += 32) weights[slot] /= total;
}

__global__ void topk_rows(const float* probs, int experts, int used, bool renormalised, std::int32_t* ids,
                          float* weights) {
  extern __shared__ float left[];
  auto* ranks = reinterpret_cast<unsigned*>(left + experts);
  wait_for_earlier();
  probs += std::int64_t{blockIdx.x} * experts;
  for (int e = threadIdx.x; e < experts; e += 32) {
    left[e] = probs[e];
    ranks[e] = rank_of(left[e]);
  }
  __syncwarp();
  topk_row(left, ranks, experts, used, renormalised, ids + std::int64_t{blockIdx.x} * used,
           weights + std::int64_t{blockIdx.x} * used);
}

__global__ void route_rows(const float* logits, int experts, int used, std::int32_t* ids, float* weights) {
  extern __shared__ float left[];
  auto* ranks = reinterpret_cast<unsigned*>(left + experts);
  wait_for_earlier();
  softmax_row(logits + std::int64_t{blockIdx.x} * experts, experts, [&](int e, float value) {
    left[e] = value;
    ranks[e] = rank_of(left[e]);
  });
  __syncthreads();
  if (threadIdx.x < 32)
    topk_row(left, ranks, experts, used, true, ids + std::int64_t{blockIdx.x} * used,
             weights + std::int64_t{blockIdx.x} * used);
}

// The sum of the values of the lanes before this one.
__device__ int sum_before(int value) {
  const int lane = threadIdx.x % 32;
  int sum = value;
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(~0u, sum, step);
    if (lane >= step) sum += other;
  }
  return sum - value;
}

// One block. The order within a group is left open: each vector's result is its own.
__global__ void group(const std::int32_t* ids, int count, int experts, int tile, int* order, Tile* tiles,
                      int* tile_count) {
  extern __shared__ int counts[];
  int* next = counts + experts;
  wait_for_earlier();
  for (int e = threadIdx.x; e < experts; e += blockDim.x) counts[e] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += blockDim.x) atomicAdd(&counts[ids[i]], 1);
  __syncthreads();
  if (threadIdx.x < 32) {
    int first = 0, tile_at = 0;  // of the experts before these 32
    for (int e = threadIdx.x; e < experts + static_cast<int>(threadIdx.x); e += 32) {
      const int mine = e < experts ? counts[e] : 0, my_tiles = (mine + tile - 1) / tile;
      const int before = sum_before(mine), tiles_before = sum_before(my_tiles);
      if (e < experts) next[e] = first + before;
      for (int i = 0; i < my_tiles; ++i)
        tiles[tile_at + tiles_before + i] = {e, first + before + i * tile, min(tile, mine - i * tile)};
      first += __shfl_sync(~0u, before + mine, 31);
      tile_at += __shfl_sync(~0u, tiles_before + my_tiles, 31);
    }
    if (threadIdx.x == 0) *tile_count = tile_at;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += blockDim.x) order[atomicAdd(&next[ids[i]], 1)] = i;
}

std::size_t topk_bytes(int experts) { return static_cast<std::size_t>(experts) * (sizeof(float) + sizeof(int)); }

}  // namespace

void softmax(const float* x, int rows, int groups, int width, const int* first, float* y, cudaStream_t stream) {
  const int threads = first ? causal_threads : threads_for(width);
  launch(softmax_rows, static_cast<unsigned>(rows * groups), threads, 0, stream, x, groups, width, first, y);
}

void topk(const float* probs, int rows, int experts, int used, bool renormalised, std::int32_t* ids, float* weights,
          cudaStream_t stream) {
  launch(topk_rows, static_cast<unsigned>(rows), 32, topk_bytes(experts), stream, probs, experts, used, renormalised,
         ids, weights);
}

void route(const float* logits, int rows, int experts, int used, std::int32_t* ids, float* weights,
           cudaStream_t stream) {
  launch(route_rows, static_cast<unsigned>(rows), threads_for(experts), topk_bytes(experts), stream, logits, experts,
         used, ids, weights);
}

void group_by_expert(const std::int32_t* ids, int count, int experts, int tile, int* order, Tile* tiles,
                     int* tile_count, cudaStream_t stream) {
  const int threads = std::clamp((std::max(count, experts) + 31) / 32 * 32, 32, 1024);
  launch(group, 1, threads, static_cast<std::size_t>(experts) * 2 * sizeof(int), stream, ids, count, experts, tile,
         order, tiles, tile_count);
}

}  // namespace moe_diag::cuda
