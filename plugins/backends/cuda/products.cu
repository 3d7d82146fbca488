// SPDX-License-Identifier: MIT
#include <algorithm>

#include "plugins/backends/cuda/decode.cuh"
#include "plugins/backends/cuda/device.hpp"
#include "plugins/backends/cuda/kernels.hpp"

namespace moe_diag::cuda {
namespace {

constexpr int few_threads = 256, few_warps = few_threads / 32;
// A segment of a vector in shared memory: 4 more than 64 values, so that the 16-byte reads of 8 neighbouring lanes, one
// segment each, lie in different banks.
constexpr int few_stride = segment + 4;
constexpr int many_threads = 128, many_rows = 64;

__device__ inline int ceil_div(std::int64_t a, int b) { return static_cast<int>((a + b - 1) / b); }

__device__ inline Tile tile_at(const Vectors& v, int index, int size) {
  if (v.tiles) return index < *v.tile_count ? v.tiles[index] : Tile{0, 0, 0};
  return {0, index * size, min(size, v.count - index * size)};
}
__device__ inline int result_row(const Vectors& v, int i) { return v.order ? v.order[i] : i; }
__device__ inline const float* vector_at(const Vectors& v, int i) {
  return v.x + std::int64_t{result_row(v, i) / v.divide} * v.x_stride;
}

// ---- few vectors ---------------------------------------------------------------------------------------------------

__device__ void load_vectors(const Vectors& v, const Tile& tile, std::int64_t cols, int segments, float* xs) {
  const int padded = segments * segment;
  for (int m = 0; m < few_tile; ++m) {
    const float* x = m < tile.count ? vector_at(v, tile.first + m) : nullptr;
    float* to = xs + std::int64_t{m} * segments * few_stride;
    for (int k = threadIdx.x; k < padded; k += few_threads)
      to[k / segment * few_stride + k % segment] = x && k < cols ? x[k] : 0.0f;
    if (m + 1 >= tile.count && (m + 1 == 1 || m + 1 == 2)) break;  // the kernels for 1 and 2 vectors read no more
  }
}

// Sums of M vectors over one segment of a row.
template <BlockType B, int M>
__device__ __forceinline__ void dot_segment(const std::byte* row, std::int64_t cols, int at, const float* xs,
                                            std::int64_t x_size, float (&sums)[M]) {
  float w[4][16];
#pragma unroll
  for (int part = 0; part < 4; ++part) load_part<B>(row, cols, at, part, w[part]);
#pragma unroll
  for (int m = 0; m < M; ++m) sums[m] = 0.0f;
#pragma unroll
  for (int k = 0; k < segment; k += 4) {
    const float* some = &w[k % 32 / 8][k / 32 * 8 + k % 8];
#pragma unroll
    for (int m = 0; m < M; ++m) {
      const float4 x = *reinterpret_cast<const float4*>(xs + m * x_size + at * few_stride + k);
      sums[m] = fmaf(some[0], x.x, sums[m]);
      sums[m] = fmaf(some[1], x.y, sums[m]);
      sums[m] = fmaf(some[2], x.z, sums[m]);
      sums[m] = fmaf(some[3], x.w, sums[m]);
    }
  }
}

// A row is given to `lanes` lanes of a warp, a segment to each; lane m of them adds up the segments for vector m.
template <BlockType B, int M>
__device__ void few_rows(const Matrix& w, const Vectors& v, const Tile& tile, const float* xs, float* sums,
                         int rows_per_block) {
  const int segments = ceil_div(w.cols, segment);
  int lanes = 4;
  while (lanes < 32 && lanes < segments) lanes *= 2;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, sub = lane % lanes, at_once = 32 / lanes;
  const std::byte* base = w.data + tile.expert * w.expert_bytes;
  const std::int64_t end = min(w.rows, (std::int64_t{blockIdx.x} + 1) * rows_per_block);
  float* mine = sums + warp * few_tile * 32;
  for (std::int64_t r = std::int64_t{blockIdx.x} * rows_per_block + warp * at_once; r < end; r += few_warps * at_once) {
    const std::int64_t row = r + lane / lanes;
    float total = 0.0f;
    for (int first = 0; first < segments; first += lanes) {
      if (row < end && first + sub < segments) {
        float sum[M];
        dot_segment<B, M>(base + row * w.row_bytes, w.cols, first + sub, xs, std::int64_t{segments} * few_stride, sum);
#pragma unroll
        for (int m = 0; m < M; ++m) mine[m * 32 + lane] = sum[m];
      }
      __syncwarp();
      if (row < end && sub < M)
        for (int i = 0; i < min(lanes, segments - first); ++i) total += mine[sub * 32 + lane / lanes * lanes + i];
      __syncwarp();
    }
    if (row < end && sub < tile.count) v.y[result_row(v, tile.first + sub) * v.y_stride + row] = total;
  }
}

template <BlockType B>
__global__ void __launch_bounds__(few_threads) few(Matrix w, Vectors v, int rows_per_block) {
  extern __shared__ __align__(16) float shared[];
  const Tile tile = tile_at(v, blockIdx.y, few_tile);
  if (tile.count <= 0) return;
  float* sums = shared;
  float* xs = shared + few_warps * few_tile * 32;
  load_vectors(v, tile, w.cols, ceil_div(w.cols, segment), xs);
  __syncthreads();
  if (tile.count == 1)
    few_rows<B, 1>(w, v, tile, xs, sums, rows_per_block);
  else if (tile.count == 2)
    few_rows<B, 2>(w, v, tile, xs, sums, rows_per_block);
  else
    few_rows<B, 4>(w, v, tile, xs, sums, rows_per_block);
}

std::size_t few_bytes(std::int64_t cols) {
  const std::int64_t segments = (cols + segment - 1) / segment;
  return static_cast<std::size_t>(few_warps * few_tile * 32 + few_tile * segments * few_stride) * sizeof(float);
}

template <BlockType B>
void launch_few(const Matrix& w, const Vectors& v, int tiles, cudaStream_t stream) {
  const std::size_t bytes = few_bytes(w.cols);
  if (bytes > 48 * 1024)
    MOE_DIAG_CUDA(cudaFuncSetAttribute(few<B>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  const int rows_per_block = w.rows * tiles >= 4096 ? 16 : 8;
  const auto blocks = static_cast<unsigned>((w.rows + rows_per_block - 1) / rows_per_block);
  few<B><<<dim3(blocks, static_cast<unsigned>(tiles)), few_threads, bytes, stream>>>(w, v, rows_per_block);
}

// ---- many vectors --------------------------------------------------------------------------------------------------

// Column of weight row r at value k of a segment in shared memory. Threads that decode different eighths of a segment
// write, and threads that read 4 rows at a time read, different banks.
__device__ inline int column_of(int r, int k) { return r ^ (k / 8 % 4 * 8); }

template <BlockType B>
__device__ void decode_tile(const Matrix& w, const std::byte* base, int row, int at, float* ws) {
  for (int job = threadIdx.x; job < many_rows * 4; job += many_threads) {
    const int r = job / 4, part = job % 4;
    float some[16] = {};
    if (row + r < w.rows) load_part<B>(base + (row + r) * w.row_bytes, w.cols, at, part, some);
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int k = i / 8 * 32 + part * 8 + i % 8;
      ws[k * many_rows + column_of(r, k)] = some[i];
    }
  }
}

__device__ void load_tile(const Vectors& v, const Tile& tile, std::int64_t cols, int at, float* xs) {
  for (int job = threadIdx.x; job < many_tile * segment / 4; job += many_threads) {
    const int m = job / (segment / 4), k = job % (segment / 4) * 4;
    const std::int64_t column = std::int64_t{at} * segment + k;
    float4 x{0, 0, 0, 0};
    if (m < tile.count && column < cols) {
      const float* from = vector_at(v, tile.first + m) + column;
      if (cols % 4 == 0 && v.x_stride % 4 == 0) {
        x = *reinterpret_cast<const float4*>(from);
      } else {
        x.x = from[0];
        x.y = column + 1 < cols ? from[1] : 0.0f;
        x.z = column + 2 < cols ? from[2] : 0.0f;
        x.w = column + 3 < cols ? from[3] : 0.0f;
      }
    }
    *reinterpret_cast<float4*>(xs + m * few_stride + k) = x;
  }
}

// Adds one segment of 4 weight rows times 4 vectors to `totals`.
__device__ __forceinline__ void multiply_tile(const float* ws, const float* xs, int tx, int ty, float (&totals)[4][4]) {
  float sums[4][4] = {};
#pragma unroll 4
  for (int k = 0; k < segment; k += 4) {
    float4 x[4];
#pragma unroll
    for (int m = 0; m < 4; ++m) x[m] = *reinterpret_cast<const float4*>(xs + (ty * 4 + m) * few_stride + k);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float4 w = *reinterpret_cast<const float4*>(ws + (k + i) * many_rows + column_of(tx * 4, k));
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        const float value = i == 0 ? x[m].x : i == 1 ? x[m].y : i == 2 ? x[m].z : x[m].w;
        sums[m][0] = fmaf(w.x, value, sums[m][0]);
        sums[m][1] = fmaf(w.y, value, sums[m][1]);
        sums[m][2] = fmaf(w.z, value, sums[m][2]);
        sums[m][3] = fmaf(w.w, value, sums[m][3]);
      }
    }
  }
#pragma unroll
  for (int m = 0; m < 4; ++m)
#pragma unroll
    for (int n = 0; n < 4; ++n) totals[m][n] += sums[m][n];
}

template <BlockType B>
__global__ void __launch_bounds__(many_threads) many(Matrix w, Vectors v) {
  __shared__ __align__(16) float ws[segment * many_rows];
  __shared__ __align__(16) float xs[many_tile * few_stride];
  const Tile tile = tile_at(v, blockIdx.y, many_tile);
  if (tile.count <= 0) return;
  const int row = blockIdx.x * many_rows, tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  const std::byte* base = w.data + tile.expert * w.expert_bytes;
  float totals[4][4] = {};
  const int segments = ceil_div(w.cols, segment);
  for (int at = 0; at < segments; ++at) {
    decode_tile<B>(w, base, row, at, ws);
    load_tile(v, tile, w.cols, at, xs);
    __syncthreads();
    multiply_tile(ws, xs, tx, ty, totals);
    __syncthreads();
  }
#pragma unroll
  for (int m = 0; m < 4; ++m) {
    if (ty * 4 + m >= tile.count) continue;
    float* y = v.y + result_row(v, tile.first + ty * 4 + m) * v.y_stride;
#pragma unroll
    for (int n = 0; n < 4; ++n)
      if (row + tx * 4 + n < w.rows) y[row + tx * 4 + n] = totals[m][n];
  }
}

template <BlockType B>
void launch(const Matrix& w, const Vectors& v, int tile, cudaStream_t stream) {
  const int tiles = v.tiles ? v.most_tiles : (v.count + tile - 1) / tile;
  if (tiles <= 0 || w.rows <= 0) return;
  if (tile == few_tile) {
    launch_few<B>(w, v, tiles, stream);
  } else {
    const auto blocks = static_cast<unsigned>((w.rows + many_rows - 1) / many_rows);
    many<B><<<dim3(blocks, static_cast<unsigned>(tiles)), many_threads, 0, stream>>>(w, v);
  }
  MOE_DIAG_CUDA(cudaGetLastError());
}

// ---- grouping ------------------------------------------------------------------------------------------------------

// One block. The order within a group is left open: each vector's result is its own.
__global__ void group(const std::int32_t* ids, int count, int experts, int shift, int tile, int* order, Tile* tiles,
                      int* tile_count) {
  extern __shared__ int counts[];
  int* next = counts + experts;
  for (int e = threadIdx.x; e < experts; e += blockDim.x) counts[e] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += blockDim.x) atomicAdd(&counts[(ids[i] + shift) % experts], 1);
  __syncthreads();
  for (int e = threadIdx.x; e < experts; e += blockDim.x) {
    int first = 0, tile_at = 0;
    for (int before = 0; before < e; ++before) {
      first += counts[before];
      tile_at += (counts[before] + tile - 1) / tile;
    }
    next[e] = first;
    for (int i = 0; i < counts[e]; i += tile) tiles[tile_at++] = {e, first + i, min(tile, counts[e] - i)};
    if (e == experts - 1) *tile_count = tile_at;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += blockDim.x)
    order[atomicAdd(&next[(ids[i] + shift) % experts], 1)] = i;
}

}  // namespace

bool few_fits(std::int64_t cols, std::size_t shared_bytes) { return few_bytes(cols) <= shared_bytes; }

void products(const Matrix& w, const Vectors& v, int tile, cudaStream_t stream) {
  switch (w.type) {
    case BlockType::f32: return launch<BlockType::f32>(w, v, tile, stream);
    case BlockType::f16: return launch<BlockType::f16>(w, v, tile, stream);
    case BlockType::bf16: return launch<BlockType::bf16>(w, v, tile, stream);
    case BlockType::q8_0: return launch<BlockType::q8_0>(w, v, tile, stream);
    case BlockType::q4_k: return launch<BlockType::q4_k>(w, v, tile, stream);
    case BlockType::q6_k: return launch<BlockType::q6_k>(w, v, tile, stream);
  }
}

void group_by_expert(const std::int32_t* ids, int count, int experts, int shift, int tile, int* order, Tile* tiles,
                     int* tile_count, cudaStream_t stream) {
  const int threads = std::clamp((std::max(count, experts) + 31) / 32 * 32, 32, 1024);
  const auto bytes = static_cast<std::size_t>(experts) * 2 * sizeof(int);
  group<<<1, threads, bytes, stream>>>(ids, count, experts, shift, tile, order, tiles, tile_count);
  MOE_DIAG_CUDA(cudaGetLastError());
}

}  // namespace moe_diag::cuda
