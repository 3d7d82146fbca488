// SPDX-License-Identifier: MIT
#include "plugins/backends/cuda/kernels.hpp"
#include "plugins/backends/cuda/launch.cuh"
#include "plugins/backends/cuda/norm.cuh"

// What happens to the heads of q, k and v before they meet.
namespace moe_diag::cuda {
namespace {

constexpr int block_threads = 256;

__global__ void angle_table(double theta, int count, int half, float* cosines, float* sines) {
  wait_for_earlier();
  const int at = blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= count) return;
  const double angle = at / half * pow(theta, -static_cast<double>(at % half) / half);
  cosines[at] = static_cast<float>(cos(angle));
  sines[at] = static_cast<float>(sin(angle));
}

// Rotates values k and k + half of a head.
__device__ __forceinline__ void rotate(float a, float b, float c, float s, int k, int half, float* y) {
  y[k] = a * c - b * s;
  y[half + k] = b * c + a * s;
}

__global__ void rope_rows(const float* x, std::int64_t x_stride, const float* cosines, const float* sines,
                          const int* first, int heads, int half, std::int64_t count, float* y) {
  wait_for_earlier();
  const std::int64_t at = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at >= count) return;
  const int k = static_cast<int>(at % half);
  const std::int64_t head = at / half;
  const std::int64_t angle = (*first + head / heads) * half + k;
  x += head / heads * x_stride + head % heads * 2 * half;
  rotate(x[k], x[half + k], cosines[angle], sines[angle], k, half, y + head * 2 * half);
}

__global__ void append_rows(const float* x, std::int64_t x_stride, int offset, int width, const int* first,
                            std::int64_t count, float* cache) {
  wait_for_earlier();
  const std::int64_t at = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at < count) cache[*first * std::int64_t{width} + at] = x[at / width * x_stride + offset + at % width];
}

// A block to each head of each row, in the order of qkv: q, k, v.
__global__ void prepare_heads_of_rows(Heads h, Attention a) {
  extern __shared__ float normed[];
  wait_for_earlier();
  const int width = a.head_dim, half = width / 2, all = a.heads + 2 * a.kv_heads;
  const std::int64_t row = blockIdx.y, position = *a.first + row;
  const int head = blockIdx.x, kv_head = (head - a.heads) % a.kv_heads;
  const float* x = h.qkv + (row * all + head) * width;
  if (head >= a.heads + a.kv_heads) {
    float* value = h.values + (position * a.kv_heads + kv_head) * width;
    for (int k = threadIdx.x; k < width; k += blockDim.x) value[k] = x[k];
    return;
  }
  const bool is_q = head < a.heads;
  norm_row([&](int k) { return x[k]; }, is_q ? h.q_norm : h.k_norm, width, is_q ? h.q_eps : h.k_eps, blockDim.x,
           [&](int k, float value) { normed[k] = value; });
  __syncthreads();
  float* y = is_q ? h.q + (row * a.heads + head) * width : h.keys + (position * a.kv_heads + kv_head) * width;
  for (int k = threadIdx.x; k < half; k += blockDim.x)
    rotate(normed[k], normed[half + k], h.cosines[position * half + k], h.sines[position * half + k], k, half, y);
}

}  // namespace

void angles(double theta, int total, int head_dim, float* cosines, float* sines, cudaStream_t stream) {
  const int half = head_dim / 2, count = total * half;
  launch(angle_table, blocks_for(count, block_threads), block_threads, 0, stream, theta, count, half, cosines, sines);
}

void rope(const float* x, std::int64_t x_stride, const float* cosines, const float* sines, const int* first, int rows,
          int heads, int head_dim, float* y, cudaStream_t stream) {
  const int half = head_dim / 2;
  const std::int64_t count = std::int64_t{rows} * heads * half;
  launch(rope_rows, blocks_for(count, block_threads), block_threads, 0, stream, x, x_stride, cosines, sines, first,
         heads, half, count, y);
}

void append(const float* x, std::int64_t x_stride, int offset, int rows, int width, const int* first, float* cache,
            cudaStream_t stream) {
  const std::int64_t count = std::int64_t{rows} * width;
  launch(append_rows, blocks_for(count, block_threads), block_threads, 0, stream, x, x_stride, offset, width, first,
         count, cache);
}

void prepare_heads(const Heads& h, const Attention& a, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(a.heads + 2 * a.kv_heads), static_cast<unsigned>(a.rows));
  launch(prepare_heads_of_rows, grid, threads_for(a.head_dim), static_cast<std::size_t>(a.head_dim) * sizeof(float),
         stream, h, a);
}

}  // namespace moe_diag::cuda
