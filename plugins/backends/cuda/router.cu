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
  const int threads = blockDim.x;
  float most = -INFINITY;
  for (int k = threadIdx.x; k < seen; k += threads) most = fmaxf(most, x[k]);
  most = most_of_threads(most, threads);
  float sum = 0.0f;
  for (int k = threadIdx.x; k < seen; k += threads) sum += expf(x[k] - most);
  sum = sum_of_threads(sum, threads);
  for (int k = threadIdx.x; k < seen; k += threads) put(k, expf(x[k] - most) / sum);
}

__global__ void softmax_rows(const float* x, int groups, int width, const int* first, float* y) {
  wait_for_earlier();
  x += std::int64_t{blockIdx.x} * width;
  y += std::int64_t{blockIdx.x} * width;
  const int seen = first ? *first + static_cast<int>(blockIdx.x) / groups + 1 : width;
  softmax_row(x, seen, [&](int k, float value) { y[k] = value; });
  for (int k = seen + threadIdx.x; k < width; k += blockDim.x) y[k] = 0.0f;
}

// One warp a row; `left` and `taken` are in shared memory, left the probabilities. The first free expert wins all
// comparisons with NaN: the ids stay valid and distinct.
__device__ void topk_row(const float* left, int* taken, int experts, int used, std::int32_t* ids, float* weights) {
  const int lane = threadIdx.x;
  float total = 0.0f;
  int free = 0;  // the first expert not taken
  for (int slot = 0; slot < used; ++slot) {
    while (taken[free]) ++free;
    int best = free;
    float value = left[free];
    if (!isnan(value)) {
      for (int e = lane; e < experts; e += 32)
        if (!taken[e] && (left[e] > value || (left[e] == value && e < best))) {
          value = left[e];
          best = e;
        }
      for (int step = 16; step > 0; step /= 2) {
        const float other = __shfl_xor_sync(~0u, value, step);
        const int id = __shfl_xor_sync(~0u, best, step);
        if (other > value || (other == value && id < best)) {
          value = other;
          best = id;
        }
      }
    }
    __syncwarp();
    if (lane == 0) {
      ids[slot] = best;
      weights[slot] = value;
      taken[best] = 1;
    }
    __syncwarp();
    total += value;
  }
  for (int slot = lane; slot < used; slot += 32) weights[slot] /= total;
}

__global__ void topk_rows(const float* probs, int experts, int used, std::int32_t* ids, float* weights) {
  extern __shared__ float left[];
  auto* taken = reinterpret_cast<int*>(left + experts);
  wait_for_earlier();
  probs += std::int64_t{blockIdx.x} * experts;
  for (int e = threadIdx.x; e < experts; e += 32) {
    left[e] = probs[e];
    taken[e] = 0;
  }
  __syncwarp();
  topk_row(left, taken, experts, used, ids + std::int64_t{blockIdx.x} * used, weights + std::int64_t{blockIdx.x} * used);
}

__global__ void route_rows(const float* logits, int experts, int used, std::int32_t* ids, float* weights) {
  extern __shared__ float left[];
  auto* taken = reinterpret_cast<int*>(left + experts);
  wait_for_earlier();
  softmax_row(logits + std::int64_t{blockIdx.x} * experts, experts, [&](int e, float value) {
    left[e] = value;
    taken[e] = 0;
  });
  __syncthreads();
  if (threadIdx.x < 32)
    topk_row(left, taken, experts, used, ids + std::int64_t{blockIdx.x} * used,
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
__global__ void group(const std::int32_t* ids, int count, int experts, int shift, int tile, int* order, Tile* tiles,
                      int* tile_count) {
  extern __shared__ int counts[];
  int* next = counts + experts;
  wait_for_earlier();
  for (int e = threadIdx.x; e < experts; e += blockDim.x) counts[e] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += blockDim.x) atomicAdd(&counts[(ids[i] + shift) % experts], 1);
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
  for (int i = threadIdx.x; i < count; i += blockDim.x) order[atomicAdd(&next[(ids[i] + shift) % experts], 1)] = i;
}

std::size_t topk_bytes(int experts) { return static_cast<std::size_t>(experts) * (sizeof(float) + sizeof(int)); }

}  // namespace

void softmax(const float* x, int rows, int groups, int width, const int* first, float* y, cudaStream_t stream) {
  const int threads = first ? causal_threads : threads_for(width);
  launch(softmax_rows, static_cast<unsigned>(rows * groups), threads, 0, stream, x, groups, width, first, y);
}

void topk(const float* probs, int rows, int experts, int used, std::int32_t* ids, float* weights, cudaStream_t stream) {
  launch(topk_rows, static_cast<unsigned>(rows), 32, topk_bytes(experts), stream, probs, experts, used, ids, weights);
}

void route(const float* logits, int rows, int experts, int used, std::int32_t* ids, float* weights,
           cudaStream_t stream) {
  launch(route_rows, static_cast<unsigned>(rows), threads_for(experts), topk_bytes(experts), stream, logits, experts,
         used, ids, weights);
}

void group_by_expert(const std::int32_t* ids, int count, int experts, int shift, int tile, int* order, Tile* tiles,
                     int* tile_count, cudaStream_t stream) {
  const int threads = std::clamp((std::max(count, experts) + 31) / 32 * 32, 32, 1024);
  launch(group, 1, threads, static_cast<std::size_t>(experts) * 2 * sizeof(int), stream, ids, count, experts, shift,
         tile, order, tiles, tile_count);
}

}  // namespace moe_diag::cuda
