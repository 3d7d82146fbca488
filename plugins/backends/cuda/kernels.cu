// SPDX-License-Identifier: MIT
#include "plugins/backends/cuda/kernels.hpp"

#include <algorithm>

#include "plugins/backends/cuda/device.hpp"

namespace moe_diag::cuda {
namespace {

constexpr int block_threads = 256;

unsigned blocks_for(std::int64_t count, int per_block) {
  return static_cast<unsigned>((count + per_block - 1) / per_block);
}

// Value k of a row, by the plain decoders.
__device__ float decode_at(BlockType type, const std::byte* row, std::int64_t k) {
  if (type == BlockType::f32) return reinterpret_cast<const float*>(row)[k];
  switch (type) {
    case BlockType::f32: break;
    case BlockType::f16: return float_from_f16(reinterpret_cast<const std::uint16_t*>(row)[k]);
    case BlockType::bf16: return float_from_bf16(reinterpret_cast<const std::uint16_t*>(row)[k]);
    case BlockType::q8_0: return decode<float>(reinterpret_cast<const BlockQ8_0*>(row)[k / 32], k % 32);
    case BlockType::q4_k: return decode<float>(reinterpret_cast<const BlockQ4_K*>(row)[k / 256], k % 256);
    case BlockType::q6_k: return decode<float>(reinterpret_cast<const BlockQ6_K*>(row)[k / 256], k % 256);
  }
  return 0.0f;
}

// The sum over a block of threads, by halves; its order depends on the number of threads alone. The same in all.
__device__ float sum_of_block(float value) {
  __shared__ float warps[32];
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  const int count = blockDim.x / 32;
  __syncthreads();
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  float total = 0.0f;
  for (int i = 0; i < count; ++i) total += warps[i];
  return total;
}

// A NaN never wins; what follows turns it into NaN anyway.
__device__ float most_of_block(float value) {
  __shared__ float warps[32];
  for (int step = 16; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(~0u, value, step));
  const int count = blockDim.x / 32;
  __syncthreads();
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  float most = warps[0];
  for (int i = 1; i < count; ++i) most = fmaxf(most, warps[i]);
  return most;
}

// Threads that share the sum over a row: a matter of its length alone, as the promises want it.
int threads_for(int width) { return std::clamp((width + 63) / 64 * 32, 32, 1024); }

__global__ void embed_rows(Matrix table, const std::int32_t* tokens, float* out) {
  const std::byte* row = table.data + tokens[blockIdx.x] * table.row_bytes;
  for (int k = threadIdx.x; k < table.cols; k += blockDim.x)
    out[std::int64_t{blockIdx.x} * table.cols + k] = decode_at(table.type, row, k);
}

__global__ void norm_rows(const float* x, std::int64_t x_stride, int offset, Matrix w, int groups, int width, float eps,
                          float* y) {
  constexpr int held = 4;  // values a thread keeps while the sum is made
  const std::int64_t row = blockIdx.x / groups;
  x += row * x_stride + offset + std::int64_t{blockIdx.x % groups} * width;
  y += std::int64_t{blockIdx.x} * width;
  float some[held], weight[held], sum = 0.0f;
#pragma unroll
  for (int i = 0; i < held; ++i) {
    const int k = threadIdx.x + i * blockDim.x;
    some[i] = k < width ? x[k] : 0.0f;
    weight[i] = k < width ? decode_at(w.type, w.data, k) : 0.0f;
  }
#pragma unroll
  for (int i = 0; i < held; ++i) sum = fmaf(some[i], some[i], sum);
  for (int k = threadIdx.x + held * blockDim.x; k < width; k += blockDim.x) sum = fmaf(x[k], x[k], sum);
  const float mean = sum_of_block(sum) / static_cast<float>(width);
  const float factor = 1.0f / sqrtf(mean + eps);
#pragma unroll
  for (int i = 0; i < held; ++i)
    if (const int k = threadIdx.x + i * blockDim.x; k < width) y[k] = some[i] * factor * weight[i];
  for (int k = threadIdx.x + held * blockDim.x; k < width; k += blockDim.x)
    y[k] = x[k] * factor * decode_at(w.type, w.data, k);
}

__global__ void angle_table(double theta, int count, int half, float* cosines, float* sines) {
  const int at = blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= count) return;
  const double angle = at / half * pow(theta, -static_cast<double>(at % half) / half);
  cosines[at] = static_cast<float>(cos(angle));
  sines[at] = static_cast<float>(sin(angle));
}

__global__ void rope_rows(const float* x, const float* cosines, const float* sines, const int* first, int heads,
                          int half, std::int64_t count, float* y) {
  const std::int64_t at = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at >= count) return;
  const int k = static_cast<int>(at % half);
  const std::int64_t head = at / half;
  const std::int64_t angle = (*first + head / heads) * half + k;
  const float a = x[head * 2 * half + k], b = x[head * 2 * half + half + k];
  const float c = cosines[angle], s = sines[angle];
  y[head * 2 * half + k] = a * c - b * s;
  y[head * 2 * half + half + k] = b * c + a * s;
}

__global__ void append_rows(const float* x, std::int64_t x_stride, int offset, int width, const int* first,
                            std::int64_t count, float* cache) {
  const std::int64_t at = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at < count) cache[*first * std::int64_t{width} + at] = x[at / width * x_stride + offset + at % width];
}

__global__ void softmax_rows(const float* x, int groups, int width, const int* first, float* y) {
  x += std::int64_t{blockIdx.x} * width;
  y += std::int64_t{blockIdx.x} * width;
  const int seen = first ? *first + static_cast<int>(blockIdx.x) / groups + 1 : width;
  float most = -INFINITY;
  for (int k = threadIdx.x; k < seen; k += blockDim.x) most = fmaxf(most, x[k]);
  most = most_of_block(most);
  float sum = 0.0f;
  for (int k = threadIdx.x; k < seen; k += blockDim.x) sum += expf(x[k] - most);
  sum = sum_of_block(sum);
  for (int k = threadIdx.x; k < width; k += blockDim.x) y[k] = k < seen ? expf(x[k] - most) / sum : 0.0f;
}

// One warp a row. The first free expert wins all comparisons with NaN: the ids stay valid and distinct.
__global__ void topk_rows(const float* probs, int experts, int used, std::int32_t* ids, float* weights) {
  extern __shared__ float left[];
  auto* taken = reinterpret_cast<int*>(left + experts);
  const int lane = threadIdx.x;
  probs += std::int64_t{blockIdx.x} * experts;
  ids += std::int64_t{blockIdx.x} * used;
  weights += std::int64_t{blockIdx.x} * used;
  for (int e = lane; e < experts; e += 32) {
    left[e] = probs[e];
    taken[e] = 0;
  }
  __syncwarp();
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

__global__ void add_all(const float* a, const float* b, std::int64_t count, float* y) {
  const std::int64_t at = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at < count) y[at] = a[at] + b[at];
}

__global__ void swiglu_all(const float* gate, const float* up, std::int64_t count, float* y) {
  const std::int64_t at = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at < count) y[at] = gate[at] / (1.0f + expf(-gate[at])) * up[at];
}

__global__ void weigh_rows(const float* x, const float* weights, std::int64_t count, int width, float* y) {
  const std::int64_t at = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at < count) y[at] = x[at] * weights[at / width];
}

__global__ void combine_rows(const float* x, std::int64_t count, int used, int width, float* y) {
  const std::int64_t at = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at >= count) return;
  x += at / width * used * width + at % width;
  float sum = x[0];
  for (int slot = 1; slot < used; ++slot) sum += x[std::int64_t{slot} * width];
  y[at] = sum;
}

// weigh, combine and add, nothing of it stored but the last.
__global__ void combine_rows_into(const float* x, const float* weights, const float* residual, std::int64_t count,
                                  int used, int width, float* y) {
  const std::int64_t at = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at >= count) return;
  const std::int64_t row = at / width;
  x += row * used * width + at % width;
  weights += row * used;
  float sum = x[0] * weights[0];
  for (int slot = 1; slot < used; ++slot) sum += x[std::int64_t{slot} * width] * weights[slot];
  y[at] = residual[at] + sum;
}

}  // namespace

void embed(const Matrix& table, const std::int32_t* tokens, int rows, float* out, cudaStream_t stream) {
  if (rows == 0) return;
  embed_rows<<<static_cast<unsigned>(rows), block_threads, 0, stream>>>(table, tokens, out);
  MOE_DIAG_CUDA(cudaGetLastError());
}

void rms_norm(const float* x, std::int64_t x_stride, int offset, const Matrix& w, int rows, int groups, int width,
              float eps, float* y, cudaStream_t stream) {
  if (rows == 0) return;
  norm_rows<<<static_cast<unsigned>(rows * groups), threads_for(width), 0, stream>>>(x, x_stride, offset, w, groups,
                                                                                     width, eps, y);
  MOE_DIAG_CUDA(cudaGetLastError());
}

void angles(double theta, int total, int head_dim, float* cosines, float* sines, cudaStream_t stream) {
  const int half = head_dim / 2, count = total * half;
  angle_table<<<blocks_for(count, block_threads), block_threads, 0, stream>>>(theta, count, half, cosines, sines);
  MOE_DIAG_CUDA(cudaGetLastError());
}

void rope(const float* x, const float* cosines, const float* sines, const int* first, int rows, int heads, int head_dim,
          float* y, cudaStream_t stream) {
  const int half = head_dim / 2;
  const std::int64_t count = std::int64_t{rows} * heads * half;
  rope_rows<<<blocks_for(count, block_threads), block_threads, 0, stream>>>(x, cosines, sines, first, heads, half,
                                                                            count, y);
  MOE_DIAG_CUDA(cudaGetLastError());
}

void append(const float* x, std::int64_t x_stride, int offset, int rows, int width, const int* first, float* cache,
            cudaStream_t stream) {
  const std::int64_t count = std::int64_t{rows} * width;
  append_rows<<<blocks_for(count, block_threads), block_threads, 0, stream>>>(x, x_stride, offset, width, first, count,
                                                                              cache);
  MOE_DIAG_CUDA(cudaGetLastError());
}

void softmax(const float* x, int rows, int groups, int width, const int* first, float* y, cudaStream_t stream) {
  const int threads = first ? 128 : threads_for(width);
  softmax_rows<<<static_cast<unsigned>(rows * groups), threads, 0, stream>>>(x, groups, width, first, y);
  MOE_DIAG_CUDA(cudaGetLastError());
}

void topk(const float* probs, int rows, int experts, int used, std::int32_t* ids, float* weights, cudaStream_t stream) {
  const auto bytes = static_cast<std::size_t>(experts) * (sizeof(float) + sizeof(int));
  topk_rows<<<static_cast<unsigned>(rows), 32, bytes, stream>>>(probs, experts, used, ids, weights);
  MOE_DIAG_CUDA(cudaGetLastError());
}

void add(const float* a, const float* b, std::int64_t count, float* y, cudaStream_t stream) {
  add_all<<<blocks_for(count, block_threads), block_threads, 0, stream>>>(a, b, count, y);
  MOE_DIAG_CUDA(cudaGetLastError());
}

void swiglu(const float* gate, const float* up, std::int64_t count, float* y, cudaStream_t stream) {
  swiglu_all<<<blocks_for(count, block_threads), block_threads, 0, stream>>>(gate, up, count, y);
  MOE_DIAG_CUDA(cudaGetLastError());
}

void weigh(const float* x, const float* weights, std::int64_t rows, int width, float* y, cudaStream_t stream) {
  const std::int64_t count = rows * width;
  weigh_rows<<<blocks_for(count, block_threads), block_threads, 0, stream>>>(x, weights, count, width, y);
  MOE_DIAG_CUDA(cudaGetLastError());
}

void combine(const float* x, int rows, int used, int width, float* y, cudaStream_t stream) {
  const std::int64_t count = std::int64_t{rows} * width;
  combine_rows<<<blocks_for(count, block_threads), block_threads, 0, stream>>>(x, count, used, width, y);
  MOE_DIAG_CUDA(cudaGetLastError());
}

void combine_into(const float* x, const float* weights, const float* residual, int rows, int used, int width, float* y,
                  cudaStream_t stream) {
  const std::int64_t count = std::int64_t{rows} * width;
  combine_rows_into<<<blocks_for(count, block_threads), block_threads, 0, stream>>>(x, weights, residual, count, used,
                                                                                    width, y);
  MOE_DIAG_CUDA(cudaGetLastError());
}

}  // namespace moe_diag::cuda
