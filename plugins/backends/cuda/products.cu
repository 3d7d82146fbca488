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
constexpr int many_threads = 128;

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

// Rows a lane computes at once: they share what it reads of the vectors. Only the smaller blocks leave registers for
// two.
template <BlockType B>
constexpr int rows_at_once = B == BlockType::q4_k || B == BlockType::q8_0 ? 2 : 1;

// What one lane holds of its rows: a segment of each.
template <BlockType B>
struct Segments {
  Part<B> parts[rows_at_once<B>][4];

  __device__ __forceinline__ void fetch(const Matrix& w, const std::byte* base, std::int64_t row, int apart,
                                        std::int64_t end, int at, int segments) {
#pragma unroll
    for (int r = 0; r < rows_at_once<B>; ++r) {
      if (row + r * apart < end && at < segments) {
#pragma unroll
        for (int p = 0; p < 4; ++p) parts[r][p].fetch(base + (row + r * apart) * w.row_bytes, w.cols, at, p);
      } else {
#pragma unroll
        for (int p = 0; p < 4; ++p) parts[r][p].clear();
      }
    }
  }
  __device__ __forceinline__ void ready() {
#pragma unroll
    for (int r = 0; r < rows_at_once<B>; ++r) {
      parts[r][0].ready();
#pragma unroll
      for (int p = 1; p < 4; ++p) parts[r][p].ready_like(parts[r][0]);
    }
  }
};

// Sums of M vectors over one segment of each row.
template <BlockType B, int M>
__device__ __forceinline__ void dot_segments(const Segments<B>& s, const float* xs, std::int64_t x_size,
                                             float (&sums)[rows_at_once<B>][M]) {
  constexpr int R = rows_at_once<B>;
#pragma unroll
  for (int r = 0; r < R; ++r)
#pragma unroll
    for (int m = 0; m < M; ++m) sums[r][m] = 0.0f;
#pragma unroll
  for (int k = 0; k < segment; k += 4) {
    float w[R][4];
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int i = 0; i < 4; ++i) w[r][i] = s.parts[r][k % 32 / 8].value(k / 32, k % 8 + i);
#pragma unroll
    for (int m = 0; m < M; ++m) {
      const float4 x = *reinterpret_cast<const float4*>(xs + m * x_size + k);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        sums[r][m] = fmaf(w[r][0], x.x, sums[r][m]);
        sums[r][m] = fmaf(w[r][1], x.y, sums[r][m]);
        sums[r][m] = fmaf(w[r][2], x.z, sums[r][m]);
        sums[r][m] = fmaf(w[r][3], x.w, sums[r][m]);
      }
    }
  }
}

__device__ __forceinline__ int lanes_of_row(int segments) {
  int lanes = 4;
  while (lanes < 32 && lanes < segments) lanes *= 2;
  return lanes;
}

// Adds the first `count` of the values at `from` to `total`, in order.
__device__ __forceinline__ float add_in_order(float total, const float* from, int count) {
#pragma unroll
  for (int i = 0; i < 32; i += 4) {
    if (i >= count) break;
    const float4 some = *reinterpret_cast<const float4*>(from + i);
    total += some.x;
    if (i + 1 < count) total += some.y;
    if (i + 2 < count) total += some.z;
    if (i + 3 < count) total += some.w;
  }
  return total;
}

// A row is given to `lanes` lanes of a warp, a segment to each; lane m of them adds up the segments for vector m.
template <BlockType B, int M>
__device__ __forceinline__ void few_rows(const Matrix& w, const Vectors& v, float* y, const Tile& tile, const float* xs,
                                         float* sums, Segments<B>& fetched, std::int64_t begin, std::int64_t end) {
  constexpr int R = rows_at_once<B>;
  const int segments = ceil_div(w.cols, segment), lanes = lanes_of_row(segments), apart = 32 / lanes;
  const int lane = threadIdx.x % 32, sub = lane % lanes;
  const std::byte* base = w.data + tile.expert * w.expert_bytes;
  const std::int64_t x_size = std::int64_t{segments} * few_stride;
  float* mine = sums + threadIdx.x / 32 * few_tile * 32;
  for (std::int64_t r = begin; r < end; r += few_warps * apart * R) {
    const std::int64_t row = r + lane / lanes;
    float total[R] = {};
    for (int first = 0; first < segments; first += lanes) {
      if (r != begin || first > 0) fetched.fetch(w, base, row, apart, end, first + sub, segments);
      fetched.ready();
      float sum[R][M];
      dot_segments<B, M>(fetched, xs + min(first + sub, segments - 1) * few_stride, x_size, sum);
#pragma unroll
      for (int i = 0; i < R; ++i) {
        __syncwarp();
#pragma unroll
        for (int m = 0; m < M; ++m) mine[m * 32 + lane] = sum[i][m];
        __syncwarp();
        if (sub < M)
          total[i] = add_in_order(total[i], mine + sub * 32 + lane / lanes * lanes, min(lanes, segments - first));
      }
    }
#pragma unroll
    for (int i = 0; i < R; ++i)
      if (row + i * apart < end && sub < tile.count)
        y[result_row(v, tile.first + sub) * v.y_stride + row + i * apart] = total[i];
  }
}

template <BlockType B>
__global__ void __launch_bounds__(few_threads, 2) few(Matrices all, Vectors v, int rows_per_block) {
  extern __shared__ __align__(16) float shared[];
  const Matrix& w = all.w[blockIdx.z];
  const std::int64_t block_begin = std::int64_t{blockIdx.x} * rows_per_block;
  const Tile tile = tile_at(v, blockIdx.y, few_tile);
  if (tile.count <= 0 || block_begin >= w.rows) return;
  const int segments = ceil_div(w.cols, segment), lanes = lanes_of_row(segments), lane = threadIdx.x % 32;
  const std::int64_t end = min(w.rows, block_begin + rows_per_block);
  const std::int64_t begin = block_begin + threadIdx.x / 32 * (32 / lanes) * rows_at_once<B>;
  // The first rows are on their way while the vectors are read.
  Segments<B> fetched;
  fetched.fetch(w, w.data + tile.expert * w.expert_bytes, begin + lane / lanes, 32 / lanes, end, lane % lanes,
                segments);
  float* sums = shared;
  float* xs = shared + few_warps * few_tile * 32;
  load_vectors(v, tile, w.cols, segments, xs);
  __syncthreads();
  float* y = all.y[blockIdx.z];
  if (tile.count == 1)
    few_rows<B, 1>(w, v, y, tile, xs, sums, fetched, begin, end);
  else if (tile.count == 2)
    few_rows<B, 2>(w, v, y, tile, xs, sums, fetched, begin, end);
  else
    few_rows<B, 4>(w, v, y, tile, xs, sums, fetched, begin, end);
}

std::size_t few_bytes(std::int64_t cols) {
  const std::int64_t segments = (cols + segment - 1) / segment;
  return static_cast<std::size_t>(few_warps * few_tile * 32 + few_tile * segments * few_stride) * sizeof(float);
}

std::int64_t most_rows(const Matrices& w) {
  std::int64_t rows = 0;
  for (int i = 0; i < w.count; ++i) rows = std::max(rows, w.w[i].rows);
  return rows;
}

template <BlockType B>
void launch_few(const Matrices& w, const Vectors& v, int tiles, int processors, cudaStream_t stream) {
  const std::int64_t cols = w.w[0].cols, rows = most_rows(w);
  // One vector alone needs room for one only. The tiles of experts may hold more: nothing says that a token's differ.
  const bool alone = !v.tiles && v.count == 1;
  const std::size_t bytes = few_bytes(cols) - (alone ? 3 * (few_bytes(cols) - few_bytes(0)) / 4 : 0);
  if (bytes > 48 * 1024)
    MOE_DIAG_CUDA(cudaFuncSetAttribute(few<B>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  const std::int64_t segments = (cols + segment - 1) / segment;
  int lanes = 4;
  while (lanes < 32 && lanes < segments) lanes *= 2;
  int rows_per_block = few_warps * (32 / lanes) * rows_at_once<B>;
  // Enough blocks to fill the device: then each does more, for what it has read of the vectors.
  while (rows_per_block < 64 && rows * tiles * w.count / rows_per_block > 16 * processors) rows_per_block *= 2;
  const auto blocks = static_cast<unsigned>((rows + rows_per_block - 1) / rows_per_block);
  few<B><<<dim3(blocks, static_cast<unsigned>(tiles), static_cast<unsigned>(w.count)), few_threads, bytes, stream>>>(
      w, v, rows_per_block);
}

// ---- many vectors --------------------------------------------------------------------------------------------------

// N weight rows by 32 vectors a block; a thread has 4 rows by N / 16 vectors.

// Column of weight row r at value k of a segment in shared memory. Threads that decode different eighths of a segment
// write, and threads that read 4 rows at a time read, different banks.
template <int N>
__device__ inline int column_of(int r, int k) {
  return r ^ (k / 8 % 4 * 8 % N);
}

// A thread's part of the next segment, on its way from device memory.
template <BlockType B, int N>
struct Next {
  static constexpr int jobs = N * 4 / many_threads > 0 ? N * 4 / many_threads : 1;
  static constexpr int quads = many_tile * segment / 4 / many_threads;
  Part<B> parts[jobs];
  float4 x[quads];

  __device__ __forceinline__ void fetch_weights(const Matrix& w, const std::byte* base, int row, int at) {
#pragma unroll
    for (int j = 0; j < jobs; ++j) {
      const int job = threadIdx.x + j * many_threads, r = job / 4;
      if (r < N && row + r < w.rows)
        parts[j].fetch(base + (row + r) * w.row_bytes, w.cols, at, job % 4);
      else
        parts[j].clear();
    }
  }
  __device__ __forceinline__ void fetch_vectors(const float* const (&rows)[quads], std::int64_t cols, bool aligned,
                                                int at) {
#pragma unroll
    for (int j = 0; j < quads; ++j) {
      const std::int64_t column = std::int64_t{at} * segment + threadIdx.x % (segment / 4) * 4;
      x[j] = float4{0, 0, 0, 0};
      if (!rows[j] || column >= cols) continue;
      const float* from = rows[j] + column;
      if (aligned) {
        x[j] = *reinterpret_cast<const float4*>(from);
      } else {
        x[j].x = from[0];
        x[j].y = column + 1 < cols ? from[1] : 0.0f;
        x[j].z = column + 2 < cols ? from[2] : 0.0f;
        x[j].w = column + 3 < cols ? from[3] : 0.0f;
      }
    }
  }
  __device__ __forceinline__ void store(float* ws, float* xs) {
#pragma unroll
    for (int j = 0; j < jobs; ++j) {
      parts[j].ready();
      const int job = threadIdx.x + j * many_threads, r = job / 4, part = job % 4;
      if (r >= N) continue;
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        const int k = i / 8 * 32 + part * 8 + i % 8;
        ws[k * N + column_of<N>(r, k)] = parts[j].value(i / 8, i % 8);
      }
    }
#pragma unroll
    for (int j = 0; j < quads; ++j) {
      const int job = threadIdx.x + j * many_threads;
      *reinterpret_cast<float4*>(xs + job / (segment / 4) * few_stride + job % (segment / 4) * 4) = x[j];
    }
  }
};

// Adds one segment of 4 weight rows times V vectors to `totals`.
template <int N, int V>
__device__ __forceinline__ void multiply_tile(const float* ws, const float* xs, int tx, int ty, float (&totals)[V][4]) {
  float sums[V][4] = {};
#pragma unroll 4
  for (int k = 0; k < segment; k += 4) {
    float4 x[V];
#pragma unroll
    for (int m = 0; m < V; ++m) x[m] = *reinterpret_cast<const float4*>(xs + (ty * V + m) * few_stride + k);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float4 w = *reinterpret_cast<const float4*>(ws + (k + i) * N + column_of<N>(tx * 4, k));
#pragma unroll
      for (int m = 0; m < V; ++m) {
        const float value = i == 0 ? x[m].x : i == 1 ? x[m].y : i == 2 ? x[m].z : x[m].w;
        sums[m][0] = fmaf(w.x, value, sums[m][0]);
        sums[m][1] = fmaf(w.y, value, sums[m][1]);
        sums[m][2] = fmaf(w.z, value, sums[m][2]);
        sums[m][3] = fmaf(w.w, value, sums[m][3]);
      }
    }
  }
#pragma unroll
  for (int m = 0; m < V; ++m)
#pragma unroll
    for (int n = 0; n < 4; ++n) totals[m][n] += sums[m][n];
}

template <BlockType B, int N>
__global__ void __launch_bounds__(many_threads) many(Matrices all, Vectors v) {
  constexpr int V = N / 16;
  __shared__ __align__(16) float ws[segment * N];
  __shared__ __align__(16) float xs[many_tile * few_stride];
  const Matrix& w = all.w[blockIdx.z];
  const int row = blockIdx.x * N, tx = threadIdx.x % (N / 4), ty = threadIdx.x / (N / 4);
  const Tile tile = tile_at(v, blockIdx.y, many_tile);
  if (tile.count <= 0 || row >= w.rows) return;
  const std::byte* base = w.data + tile.expert * w.expert_bytes;
  const bool aligned = w.cols % 4 == 0 && v.x_stride % 4 == 0;
  Next<B, N> next;
  const float* rows[Next<B, N>::quads];
#pragma unroll
  for (int j = 0; j < Next<B, N>::quads; ++j) {
    const int m = (threadIdx.x + j * many_threads) / (segment / 4);
    rows[j] = m < tile.count ? vector_at(v, tile.first + m) : nullptr;
  }
  float totals[V][4] = {};
  // A warp has 8 of the 32 vectors, and the last tile of a group seldom has as many.
  const bool busy = static_cast<int>(threadIdx.x) / 32 * 8 < tile.count;
  const int segments = ceil_div(w.cols, segment);
  next.fetch_weights(w, base, row, 0);
  next.fetch_vectors(rows, w.cols, aligned, 0);
  for (int at = 0; at < segments; ++at) {
    next.store(ws, xs);
    __syncthreads();
    if (at + 1 < segments) {
      next.fetch_weights(w, base, row, at + 1);
      next.fetch_vectors(rows, w.cols, aligned, at + 1);
    }
    if (busy) multiply_tile<N>(ws, xs, tx, ty, totals);
    __syncthreads();
  }
#pragma unroll
  for (int m = 0; m < V; ++m) {
    if (ty * V + m >= tile.count) continue;
    float* y = all.y[blockIdx.z] + result_row(v, tile.first + ty * V + m) * v.y_stride;
#pragma unroll
    for (int n = 0; n < 4; ++n)
      if (row + tx * 4 + n < w.rows) y[row + tx * 4 + n] = totals[m][n];
  }
}

template <BlockType B, int N>
void launch_many(const Matrices& w, const Vectors& v, int tiles, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>((most_rows(w) + N - 1) / N);
  many<B, N>
      <<<dim3(blocks, static_cast<unsigned>(tiles), static_cast<unsigned>(w.count)), many_threads, 0, stream>>>(w, v);
}

template <BlockType B>
void launch(const Matrices& w, const Vectors& v, int tile, int processors, cudaStream_t stream) {
  const int tiles = v.tiles ? v.most_tiles : (v.count + tile - 1) / tile;
  if (tiles <= 0 || most_rows(w) <= 0) return;
  if (tile == few_tile)
    launch_few<B>(w, v, tiles, processors, stream);
  else if (most_rows(w) / 64 * tiles * w.count < 3 * processors)
    launch_many<B, 16>(w, v, tiles, stream);
  else
    launch_many<B, 64>(w, v, tiles, stream);
  MOE_DIAG_CUDA(cudaGetLastError());
}

// ---- grouping ------------------------------------------------------------------------------------------------------

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

}  // namespace

bool few_fits(std::int64_t cols, std::size_t shared_bytes) { return few_bytes(cols) <= shared_bytes; }

void products(const Matrices& w, const Vectors& v, int tile, int processors, cudaStream_t stream) {
  switch (w.w[0].type) {
    case BlockType::f32: return launch<BlockType::f32>(w, v, tile, processors, stream);
    case BlockType::f16: return launch<BlockType::f16>(w, v, tile, processors, stream);
    case BlockType::bf16: return launch<BlockType::bf16>(w, v, tile, processors, stream);
    case BlockType::q8_0: return launch<BlockType::q8_0>(w, v, tile, processors, stream);
    case BlockType::q4_k: return launch<BlockType::q4_k>(w, v, tile, processors, stream);
    case BlockType::q6_k: return launch<BlockType::q6_k>(w, v, tile, processors, stream);
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
