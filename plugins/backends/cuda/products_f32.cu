// SPDX-License-Identifier: MIT
#include <algorithm>

#include "plugins/backends/cuda/decode.cuh"
#include "plugins/backends/cuda/kernels.hpp"
#include "plugins/backends/cuda/launch.cuh"
#include "plugins/backends/cuda/vectors.cuh"

// Products in f32. Two kernels with the same bytes: one decodes weights in registers for up to 4 vectors, one in shared
// memory for 32.

namespace moe_diag::cuda {
namespace {

constexpr int few_threads = 256, few_warps = few_threads / 32;
// A segment of a vector in shared memory: 4 more than 64 values, so that the 16-byte reads of 8 neighbouring lanes, one
// segment each, lie in different banks.
constexpr int few_stride = segment + 4;
constexpr int many_threads = 128;

constexpr int few_tile = 4, many_tile = 32;  // see tile_of()

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
      // Behind the end the last is read again: nobody uses what comes of it.
      const std::byte* from = base + min(row + r * apart, end - 1) * w.row_bytes;
#pragma unroll
      for (int p = 0; p < 4; ++p) parts[r][p].fetch(from, w.cols, min(at, segments - 1), p);
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

// What the lanes of a warp do with rows: `lanes` to a row, a segment to each.
struct Share {
  int segments, lanes, apart, sub;  // segments of a row; lanes of a row; rows side by side; which lane of its row

  __device__ explicit Share(std::int64_t cols)
      : segments(ceil_div(cols, segment)), lanes(lanes_of_row(segments)), apart(32 / lanes), sub(threadIdx.x % lanes) {}
};

// Products of the rows of all lanes, from `row` on; lane m of a row adds up the segments for vector m. `fetched`: the
// first segments are on their way already.
template <BlockType B, int M>
__device__ __forceinline__ void few_products(const Matrix& w, const std::byte* base, const Share& share,
                                             const float* xs, float* sums, Segments<B>& parts, bool fetched,
                                             std::int64_t row, std::int64_t end, float (&total)[rows_at_once<B>]) {
  constexpr int R = rows_at_once<B>;
  const int lane = threadIdx.x % 32;
  const std::int64_t x_size = std::int64_t{share.segments} * few_stride;
  float* mine = sums + threadIdx.x / 32 * few_tile * 32;
  for (int first = 0; first < share.segments; first += share.lanes) {
    if (!fetched || first > 0) parts.fetch(w, base, row, share.apart, end, first + share.sub, share.segments);
    parts.ready();
    float sum[R][M];
    dot_segments<B, M>(parts, xs + min(first + share.sub, share.segments - 1) * few_stride, x_size, sum);
#pragma unroll
    for (int i = 0; i < R; ++i) {
      __syncwarp();
#pragma unroll
      for (int m = 0; m < M; ++m) mine[m * 32 + lane] = sum[i][m];
      __syncwarp();
      if (share.sub < M)
        total[i] = add_in_order(total[i], mine + share.sub * 32 + lane / share.lanes * share.lanes,
                                min(share.lanes, share.segments - first));
    }
  }
}

template <BlockType B, int M>
__device__ __forceinline__ void few_rows(const Matrices& all, int set, const Vectors& v, const Tile& tile,
                                         const Share& share, const float* xs, float* sums, Segments<B>& parts,
                                         std::int64_t begin, std::int64_t end) {
  constexpr int R = rows_at_once<B>;
  const Matrix& w = all.w[set];
  for (std::int64_t r = begin; r < end; r += few_warps * share.apart * R) {
    const std::int64_t row = r + threadIdx.x % 32 / share.lanes;
    float total[R] = {}, up[R] = {};
    few_products<B, M>(w, w.data + tile.expert * w.expert_bytes, share, xs, sums, parts, r == begin, row, end, total);
    if (all.swiglu)
      few_products<B, M>(all.w[1], all.w[1].data + tile.expert * all.w[1].expert_bytes, share, xs, sums, parts, false,
                         row, end, up);
#pragma unroll
    for (int i = 0; i < R; ++i)
      if (row + i * share.apart < end && share.sub < tile.count)
        all.y[set][result_row(v, tile.first + share.sub) * v.y_stride + row + i * share.apart] =
            all.swiglu ? swiglu_of(total[i], up[i]) : total[i];
  }
}

template <BlockType B>
__global__ void __launch_bounds__(few_threads, 2) few(Matrices all, Vectors v, int rows_per_block) {
  extern __shared__ __align__(16) float shared[];
  const int set = blockIdx.z;
  const Matrix& w = all.w[set];
  const std::int64_t block_begin = std::int64_t{blockIdx.x} * rows_per_block;
  if (by_expert(v)) wait_for_earlier();
  const Tile tile = tile_at(v, blockIdx.y, few_tile);
  if (tile.count <= 0 || block_begin >= w.rows) return;
  const Share share(w.cols);
  const std::int64_t end = min(w.rows, block_begin + rows_per_block);
  const std::int64_t begin = block_begin + threadIdx.x / 32 * share.apart * rows_at_once<B>;
  // The first rows are on their way while the vectors are waited for and read.
  Segments<B> parts;
  parts.fetch(w, w.data + tile.expert * w.expert_bytes, begin + threadIdx.x % 32 / share.lanes, share.apart, end,
              share.sub, share.segments);
  if (!by_expert(v)) wait_for_earlier();
  float* sums = shared;
  float* xs = shared + few_warps * few_tile * 32;
  load_vectors(v, tile, w.cols, share.segments, xs);
  __syncthreads();
  if (tile.count == 1)
    few_rows<B, 1>(all, set, v, tile, share, xs, sums, parts, begin, end);
  else if (tile.count == 2)
    few_rows<B, 2>(all, set, v, tile, share, xs, sums, parts, begin, end);
  else
    few_rows<B, 4>(all, set, v, tile, share, xs, sums, parts, begin, end);
}

std::size_t few_bytes(std::int64_t cols) {
  const std::int64_t segments = (cols + segment - 1) / segment;
  return static_cast<std::size_t>(few_warps * few_tile * 32 + few_tile * segments * few_stride) * sizeof(float);
}

template <BlockType B>
void launch_few(const Matrices& w, const Vectors& v, int tiles, const Device& device, cudaStream_t stream) {
  const std::int64_t cols = w.w[0].cols, rows = most_rows(w);
  // One vector alone needs room for one only.
  const bool alone = v.ids || (!v.tiles && v.count == 1);
  const std::size_t bytes = few_bytes(cols) - (alone ? 3 * (few_bytes(cols) - few_bytes(0)) / 4 : 0);
  allow_shared(few<B>, bytes);
  const std::int64_t segments = (cols + segment - 1) / segment;
  int lanes = 4;
  while (lanes < 32 && lanes < segments) lanes *= 2;
  int rows_per_block = few_warps * (32 / lanes) * rows_at_once<B>;
  // Enough blocks to fill the device: then each does more, for what it has read of the vectors.
  const int sets = sets_of(w);
  while (rows_per_block < 64 && rows * tiles * sets / rows_per_block > 16 * device.processors) rows_per_block *= 2;
  const dim3 grid(blocks_for(rows, rows_per_block), static_cast<unsigned>(tiles), static_cast<unsigned>(sets));
  launch(few<B>, grid, few_threads, bytes, stream, w, v, rows_per_block);
}

// ---- many vectors --------------------------------------------------------------------------------------------------

// N weight rows by 32 vectors a block; a thread has 4 rows by N / 16 vectors. Of gate and up, N / 2 rows each.

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

  __device__ __forceinline__ void fetch_weights(const std::byte* const (&rows)[jobs], std::int64_t cols, int at) {
#pragma unroll
    for (int j = 0; j < jobs; ++j) {
      parts[j].fetch(rows[j], cols, at, static_cast<int>(threadIdx.x) % 4);
    }
  }
  __device__ __forceinline__ void fetch_vectors(const float* const (&rows)[quads], std::int64_t cols, bool aligned,
                                                int at) {
#pragma unroll
    for (int j = 0; j < quads; ++j) {
      const std::int64_t column = std::int64_t{at} * segment + threadIdx.x % (segment / 4) * 4;
      const float* from = rows[j] + column;
      if (aligned && (at + 1) * segment <= cols) {
        x[j] = *reinterpret_cast<const float4*>(from);
      } else {
        x[j].x = column < cols ? from[0] : 0.0f;
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

// Row r of a block's N: of which matrix, and which of its rows.
template <int N>
struct Place {
  int set;
  std::int64_t row;

  __device__ Place(const Matrices& all, int r)
      : set(all.swiglu ? r / (N / 2) : blockIdx.z),
        row(all.swiglu ? std::int64_t{blockIdx.x} * (N / 2) + r % (N / 2) : std::int64_t{blockIdx.x} * N + r) {}
};

template <int N, int V>
__device__ __forceinline__ void write_tile(const Matrices& all, const Vectors& v, const Tile& tile, int tx, int ty,
                                           const float (&totals)[V][4]) {
  const Place<N> place(all, tx * 4);
  const std::int64_t rows = all.w[place.set].rows;
#pragma unroll
  for (int m = 0; m < V; ++m) {
    float value[4];
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      value[n] = totals[m][n];
      // The other half of the lanes of a row of threads has the other matrix.
      if (all.swiglu) value[n] = swiglu_of(totals[m][n], __shfl_xor_sync(~0u, totals[m][n], N / 8));
    }
    if (ty * V + m >= tile.count || (all.swiglu && place.set > 0)) continue;
    float* y = all.y[place.set] + result_row(v, tile.first + ty * V + m) * v.y_stride;
#pragma unroll
    for (int n = 0; n < 4; ++n)
      if (place.row + n < rows) y[place.row + n] = value[n];
  }
}

template <BlockType B, int N>
__global__ void __launch_bounds__(many_threads) many(Matrices all, Vectors v) {
  constexpr int V = N / 16;
  __shared__ __align__(16) float ws[segment * N];
  __shared__ __align__(16) float xs[many_tile * few_stride];
  wait_for_earlier();
  const std::int64_t cols = all.w[0].cols;
  const int tx = threadIdx.x % (N / 4), ty = threadIdx.x / (N / 4);
  const Tile tile = tile_at(v, blockIdx.y, many_tile);
  if (tile.count <= 0) return;
  Next<B, N> next;
  const std::byte* weights[Next<B, N>::jobs];
#pragma unroll
  for (int j = 0; j < Next<B, N>::jobs; ++j) {
    const int r = (threadIdx.x + j * many_threads) / 4;
    const Place<N> place(all, r < N ? r : 0);
    const Matrix& w = all.w[place.set];
    weights[j] = w.data + tile.expert * w.expert_bytes + min(place.row, w.rows - 1) * w.row_bytes;
  }
  const bool aligned = cols % 4 == 0 && v.x_stride % 4 == 0;
  const float* rows[Next<B, N>::quads];
#pragma unroll
  for (int j = 0; j < Next<B, N>::quads; ++j) {
    const int m = (threadIdx.x + j * many_threads) / (segment / 4);
    rows[j] = vector_at(v, tile.first + min(m, tile.count - 1));
  }
  float totals[V][4] = {};
  // A warp has 8 of the 32 vectors, and the last tile of a group seldom has as many.
  const bool busy = static_cast<int>(threadIdx.x) / 32 * 8 < tile.count;
  const int segments = ceil_div(cols, segment);
  next.fetch_weights(weights, cols, 0);
  next.fetch_vectors(rows, cols, aligned, 0);
  for (int at = 0; at < segments; ++at) {
    next.store(ws, xs);
    __syncthreads();
    if (at + 1 < segments) {
      next.fetch_weights(weights, cols, at + 1);
      next.fetch_vectors(rows, cols, aligned, at + 1);
    }
    if (busy) multiply_tile<N>(ws, xs, tx, ty, totals);
    __syncthreads();
  }
  write_tile<N>(all, v, tile, tx, ty, totals);
}

template <BlockType B, int N>
void launch_many(const Matrices& w, const Vectors& v, int tiles, cudaStream_t stream) {
  const int rows = w.swiglu ? N / 2 : N;
  launch(many<B, N>,
         dim3(blocks_for(most_rows(w), rows), static_cast<unsigned>(tiles), static_cast<unsigned>(sets_of(w))),
         many_threads, 0, stream, w, v);
}

template <BlockType B>
void launch_product(Way way, const Matrices& w, const Vectors& v, const Device& device, cudaStream_t stream) {
  const int tiles = tiles_of(v, way == Way::few ? few_tile : many_tile);
  if (tiles <= 0 || most_rows(w) <= 0) return;
  if (way == Way::few)
    launch_few<B>(w, v, tiles, device, stream);
  else if (most_rows(w) / 64 * tiles * w.count < 3 * device.processors)
    launch_many<B, 16>(w, v, tiles, stream);
  else
    launch_many<B, 64>(w, v, tiles, stream);
}

}  // namespace

std::size_t few_bytes_f32(std::int64_t cols) { return few_bytes(cols); }

void products_f32(Way way, const Matrices& w, const Vectors& v, const Device& device, cudaStream_t stream) {
  switch (w.w[0].type) {
    case BlockType::f32: return launch_product<BlockType::f32>(way, w, v, device, stream);
    case BlockType::f16: return launch_product<BlockType::f16>(way, w, v, device, stream);
    case BlockType::bf16: return launch_product<BlockType::bf16>(way, w, v, device, stream);
    case BlockType::q8_0: return launch_product<BlockType::q8_0>(way, w, v, device, stream);
    case BlockType::q4_k: return launch_product<BlockType::q4_k>(way, w, v, device, stream);
    case BlockType::q6_k: return launch_product<BlockType::q6_k>(way, w, v, device, stream);
    default: return;  // refused: see multiplies()
  }
}

}  // namespace moe_diag::cuda
