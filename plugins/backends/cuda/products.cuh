// SPDX-License-Identifier: MIT
#pragma once

// Products on the tensor cores, in the arithmetic of a Rule. A warp multiplies 16 weight rows, which it decodes in
// registers, with 8 vectors at a time; see mma.cuh for which lane holds what, and Part in decode.cuh for a row's values.
//
// A Rule has: bytes, of a vector's value as it is multiplied; Scales, what its blocks of 32 share, or nothing;
// store(), which makes it of f32; and multiply<B>(), which adds one segment of rows times vectors to sums.

#include "plugins/backends/cuda/decode.cuh"
#include "plugins/backends/cuda/kernels.hpp"
#include "plugins/backends/cuda/launch.cuh"
#include "plugins/backends/cuda/operand.cuh"
#include "plugins/backends/cuda/vectors.cuh"

namespace moe_diag::cuda {

constexpr int mma_rows = 16, mma_vectors = 8;
constexpr int chunk = 256;  // values of a row: a block of the K-quants
constexpr int chunk_segments = chunk / segment;
constexpr int most_warps = 8;
constexpr int few_vectors_tile = mma_vectors, many_vectors_tile = 64;

// Two rows of a lane, 8 apart.
template <BlockType B>
struct TwoRows {
  Part<B> upper, lower;

  __device__ __forceinline__ void fetch(const std::byte* first, const std::byte* second, std::int64_t cols, int at,
                                        int part) {
    first ? upper.fetch(first, cols, at, part) : upper.clear();
    second ? lower.fetch(second, cols, at, part) : lower.clear();
  }
  __device__ __forceinline__ void clear() {
    upper.clear();
    lower.clear();
  }
  __device__ __forceinline__ void ready() {
    upper.ready();
    lower.ready();
  }
};

// Vectors in shared memory: rows of `stride` bytes apart, so that the reads of neighbouring lanes lie in different
// banks, and, of block b of 32, `columns` scales side by side.
template <class Rule>
struct SharedVectors {
  std::byte* data;
  BlockScale* scales;
  int columns;
  int stride;

  static __host__ __device__ constexpr int stride_of(int values) { return values * Rule::bytes + 32 * Rule::bytes; }
  static __host__ __device__ constexpr int bytes_for(int vectors, int values) {
    return vectors * stride_of(values) + (Rule::scaled ? vectors_of_scales(vectors) * values / 32 * 8 : 0);
  }
  // Scales are read two at a time.
  static __host__ __device__ constexpr int vectors_of_scales(int vectors) { return (vectors + 7) / 8 * 8; }

  __device__ SharedVectors(std::byte* memory, int vectors, int values)
      : data(memory),
        scales(reinterpret_cast<BlockScale*>(memory + vectors * stride_of(values))),
        columns(vectors_of_scales(vectors)),
        stride(stride_of(values)) {}

  // What a lane reads of vector `vector` from value k on, a segment's first.
  __device__ __forceinline__ const std::byte* lane_data(int vector, int k) const {
    return data + vector * stride + (k + static_cast<int>(threadIdx.x) % 4 * 8) * Rule::bytes;
  }
  // The scales of the two vectors of which a lane has results, of value k's block.
  __device__ __forceinline__ const BlockScale* lane_scales(int vector, int k) const {
    return scales + k / 32 * columns + vector + static_cast<int>(threadIdx.x) % 4 * 2;
  }
};

// ---- few vectors: up to 8, whole in shared memory --------------------------------------------------------------------

// How a block's warps share its work: `across` of them a chunk of k in turn, and as many rows side by side as are left.
struct Split {
  int across, rows_at_once, rows_per_block, vectors;
};

template <BlockType B>
constexpr int segments_at_once = B == BlockType::q4_k ? 4 : B == BlockType::q8_0 || B == BlockType::q6_k ? 2 : 1;

// The sums of a warp's chunks of 16 rows from `row` on.
template <class Rule, BlockType B>
__device__ __forceinline__ void few_sums(const Matrix& w, int expert, std::int64_t row, const Split& split,
                                         const SharedVectors<Rule>& xs, int vectors, float (&sums)[1][1][4]) {
  constexpr int S = segments_at_once<B>;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, part = lane % 4;
  const std::byte* base = w.data + expert * w.expert_bytes;
  const std::int64_t upper = row + lane / 4, lower = upper + 8;
  const std::byte* first = upper < w.rows ? base + upper * w.row_bytes : nullptr;
  const std::byte* second = lower < w.rows ? base + lower * w.row_bytes : nullptr;
  const int vector = min(lane / 4, vectors - 1);  // the results of others are nobody's
  const int chunks = ceil_div(w.cols, chunk), segments = ceil_div(w.cols, segment);
  for (int at = warp % split.across; at < chunks; at += split.across) {
#pragma unroll
    for (int s = 0; s < chunk_segments; s += S) {
      TwoRows<B> rows[1][S];
#pragma unroll
      for (int i = 0; i < S; ++i)
        if (const int index = at * chunk_segments + s + i; index < segments)
          rows[0][i].fetch(first, second, w.cols, index, part);
        else
          rows[0][i].clear();
#pragma unroll
      for (int i = 0; i < S; ++i) {
        const int k = at * chunk + (s + i) * segment;
        TwoRows<B> now[1] = {rows[0][i]};
        now[0].ready();
        Rule::template multiply<B>(now, xs.lane_data(vector, k), 0, xs.lane_scales(0, k), xs.columns, 1, sums);
      }
    }
  }
}

// Reads the vectors of a tile, as the rule wants them.
template <class Rule>
__device__ __forceinline__ void load_few(const Vectors& v, const Tile& tile, std::int64_t cols, int padded,
                                         const SharedVectors<Rule>& xs) {
  const bool aligned = aligned_rows(v.x, v.x_stride);
  for (int i = threadIdx.x; i < tile.count * padded / 8; i += blockDim.x) {  // whole warps
    const int m = i / (padded / 8), k = i % (padded / 8) * 8;
    float x[8];
    load_eight(vector_at(v, tile.first + m), k, cols, aligned, x);
    Rule::store(x, xs.data + m * xs.stride + k * Rule::bytes, xs.scales + k / 32 * xs.columns + m);
  }
}

// A row's first bytes are on their way to the cache before the kernel's turn has come.
__device__ __forceinline__ void expect(const std::byte* from, std::int64_t bytes) {
  constexpr int line = 128;
  for (std::int64_t at = std::int64_t{threadIdx.x} * line; at < bytes; at += std::int64_t{blockDim.x} * line)
    asm volatile("prefetch.global.L2 [%0];" ::"l"(from + at));
}

template <class Rule, BlockType B>
__global__ void __launch_bounds__(most_warps * 32, 2) few_vectors(Matrices all, Vectors v, Split split) {
  extern __shared__ __align__(16) std::byte shared[];
  constexpr int results = mma_rows * mma_vectors;
  const int set = blockIdx.z, warps = blockDim.x / 32, warp = threadIdx.x / 32, sets = all.swiglu ? 2 : 1;
  const std::int64_t begin = std::int64_t{blockIdx.x} * split.rows_per_block;
  const Matrix& w = all.w[set];
  const std::int64_t end = min(w.rows, begin + split.rows_per_block);
  if (begin >= end) return;
  if (!by_expert(v)) expect(w.data + begin * w.row_bytes, min(end - begin, std::int64_t{split.rows_at_once}) * w.row_bytes);
  wait_for_earlier();
  const Tile tile = tile_at(v, blockIdx.y, few_vectors_tile);
  if (tile.count <= 0) return;
  const int padded = ceil_div(w.cols, chunk) * chunk;
  auto* partial = reinterpret_cast<float*>(shared);  // [sets][warps][results]
  const SharedVectors<Rule> xs(shared + sets * warps * results * sizeof(float), split.vectors, padded);
  load_few<Rule>(v, tile, w.cols, padded, xs);
  __syncthreads();
  for (std::int64_t row = begin; row < end; row += split.rows_at_once) {
    for (int i = 0; i < sets; ++i) {
      float sums[1][1][4] = {};
      few_sums<Rule, B>(all.w[set + i], tile.expert, row + warp / split.across * mma_rows, split, xs, tile.count, sums);
      *reinterpret_cast<float4*>(partial + (i * warps + warp) * results + threadIdx.x % 32 * 4) =
          float4{sums[0][0][0], sums[0][0][1], sums[0][0][2], sums[0][0][3]};
    }
    __syncthreads();
    for (int i = threadIdx.x; i < split.rows_at_once * mma_vectors; i += blockDim.x) {
      const int lane = i % results / 4, m = lane % 4 * 2 + i % 2;
      const std::int64_t out = row + i / results * mma_rows + lane / 4 + i % 4 / 2 * 8;
      if (m >= tile.count || out >= end) continue;
      float total[2] = {};
      for (int j = 0; j < sets; ++j)
        for (int a = 0; a < split.across; ++a)
          total[j] += partial[(j * warps + i / results * split.across + a) * results + i % results];
      all.y[set][result_row(v, tile.first + m) * v.y_stride + out] =
          all.swiglu ? swiglu_of(total[0], total[1]) : total[0];
    }
    __syncthreads();
  }
}

inline int chunks_of(std::int64_t cols) { return static_cast<int>((cols + chunk - 1) / chunk); }

template <class Rule>
std::size_t few_vectors_bytes(std::int64_t cols, int vectors) {
  constexpr std::size_t partial = 2 * most_warps * mma_rows * mma_vectors * sizeof(float);
  return partial + static_cast<std::size_t>(SharedVectors<Rule>::bytes_for(vectors, chunks_of(cols) * chunk));
}

template <class Rule, BlockType B>
void launch_few(const Matrices& w, const Vectors& v, int processors, cudaStream_t stream) {
  const int tiles = tiles_of(v, few_vectors_tile), sets = sets_of(w);
  const std::int64_t rows = most_rows(w);
  if (tiles <= 0 || rows <= 0) return;
  Split split;
  split.across = min(most_warps, chunks_of(w.w[0].cols));
  const int beside = most_warps / split.across;
  split.rows_at_once = beside * mma_rows;
  split.rows_per_block = split.rows_at_once;
  split.vectors = v.ids ? 1 : min(few_vectors_tile, v.count);
  // Enough blocks to fill the device: then each does more, for what it has read of the vectors.
  while (split.rows_per_block < 128 && rows * tiles * sets / split.rows_per_block > 8 * processors)
    split.rows_per_block *= 2;
  const std::size_t bytes = few_vectors_bytes<Rule>(w.w[0].cols, split.vectors);
  allow_shared(few_vectors<Rule, B>, bytes);
  launch(few_vectors<Rule, B>,
         dim3(blocks_for(rows, split.rows_per_block), static_cast<unsigned>(tiles), static_cast<unsigned>(sets)),
         static_cast<unsigned>(beside * split.across * 32), bytes, stream, w, v, split);
}

// ---- many vectors: up to 64, which pass through shared memory chunk by chunk ------------------------------------------

constexpr int row_tiles = 2, vector_tiles = many_vectors_tile / mma_vectors;  // of a warp

// Begins to copy one chunk of the vectors in `rows` of the operand.
template <class Rule>
__device__ __forceinline__ void begin_chunk(const Operand& operand, const int* rows, int count, int at,
                                            const SharedVectors<Rule>& xs) {
  constexpr int pieces = chunk * Rule::bytes / 16;
  for (int i = threadIdx.x; i < count * pieces; i += blockDim.x) {
    const int m = i / pieces, piece = i % pieces;
    begin_copy<16>(xs.data + m * xs.stride + piece * 16,
                   operand.data + (rows[m] * operand.padded + at * chunk) * Rule::bytes + piece * 16);
  }
  if constexpr (Rule::scaled) {
    constexpr int blocks = chunk / 32;
    for (int i = threadIdx.x; i < count * blocks; i += blockDim.x) {
      const int m = i / blocks, block = i % blocks;
      begin_copy<8>(xs.scales + block * xs.columns + m,
                    operand.scales + (rows[m] * (operand.padded / 32) + at * blocks + block) * 2);
    }
  }
}

// Where a lane's rows are: of two tiles of 16 rows, or of one of each of gate and up.
struct LaneRows {
  const std::byte* data[row_tiles][2];
  std::int64_t row[row_tiles];  // the upper one
  int set[row_tiles];

  __device__ LaneRows(const Matrices& all, int expert) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
#pragma unroll
    for (int i = 0; i < row_tiles; ++i) {
      set[i] = all.swiglu ? i : blockIdx.z;
      const int tile = all.swiglu ? blockIdx.x * warps + warp : (blockIdx.x * warps + warp) * row_tiles + i;
      row[i] = std::int64_t{tile} * mma_rows + lane / 4;
      const Matrix& w = all.w[set[i]];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::int64_t at = row[i] + half * 8;
        data[i][half] = at < w.rows ? w.data + expert * w.expert_bytes + at * w.row_bytes : nullptr;
      }
    }
  }
};

// Types whose next segment is fetched while this one is multiplied; others take too many registers.
template <BlockType B>
constexpr bool fetched_ahead = B == BlockType::q4_k || B == BlockType::q6_k || B == BlockType::q8_0;

template <BlockType B>
__device__ __forceinline__ void fetch_rows(const LaneRows& rows, std::int64_t cols, int at, bool there,
                                           TwoRows<B> (&to)[row_tiles]) {
#pragma unroll
  for (int i = 0; i < row_tiles; ++i)
    if (there)
      to[i].fetch(rows.data[i][0], rows.data[i][1], cols, at, threadIdx.x % 4);
    else
      to[i].clear();
}

__device__ __forceinline__ void write_many(const Matrices& all, const Vectors& v, const Tile& tile,
                                           const LaneRows& rows, const float (&sums)[row_tiles][vector_tiles][4]) {
#pragma unroll
  for (int n = 0; n < vector_tiles; ++n)
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int m = n * mma_vectors + threadIdx.x % 4 * 2 + c;
      if (m >= tile.count) continue;
      const std::int64_t place = result_row(v, tile.first + m) * v.y_stride;
#pragma unroll
      for (int i = 0; i < row_tiles; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const std::int64_t row = rows.row[i] + half * 8;
          if (row >= all.w[rows.set[i]].rows) continue;
          if (!all.swiglu)
            all.y[rows.set[i]][place + row] = sums[i][n][half * 2 + c];
          else if (i == 0)
            all.y[0][place + row] = swiglu_of(sums[0][n][half * 2 + c], sums[1][n][half * 2 + c]);
        }
    }
}

template <class Rule, BlockType B>
__global__ void __launch_bounds__(most_warps * 32, 1) many_vectors(Matrices all, Vectors v, Operand operand) {
  extern __shared__ __align__(16) std::byte shared[];
  __shared__ int sources[many_vectors_tile];
  wait_for_earlier();
  const Tile tile = tile_at(v, blockIdx.y, many_vectors_tile);
  if (tile.count <= 0) return;
  const std::int64_t cols = all.w[0].cols;
  const LaneRows rows(all, tile.expert);
  const int segments = ceil_div(cols, segment), chunks = ceil_div(cols, chunk);
  TwoRows<B> next[row_tiles];
  if (fetched_ahead<B>) fetch_rows<B>(rows, cols, 0, true, next);
  for (int m = threadIdx.x; m < tile.count; m += blockDim.x) sources[m] = vector_row(v, tile.first + m);
  __syncthreads();
  constexpr int bytes = SharedVectors<Rule>::bytes_for(many_vectors_tile, chunk);
  const auto buffer = [](int at) { return SharedVectors<Rule>(shared + at % 2 * bytes, many_vectors_tile, chunk); };
  begin_chunk<Rule>(operand, sources, tile.count, 0, buffer(0));
  end_of_copies();
  float sums[row_tiles][vector_tiles][4] = {};
  const int tiles = ceil_div(tile.count, mma_vectors);
  for (int at = 0; at < chunks; ++at) {
    if (at + 1 < chunks) begin_chunk<Rule>(operand, sources, tile.count, at + 1, buffer(at + 1));
    end_of_copies();
    copies_arrived<1>();
    __syncthreads();
    const SharedVectors<Rule> xs = buffer(at);
#pragma unroll
    for (int s = 0; s < chunk_segments; ++s) {
      const int index = at * chunk_segments + s;
      if (index >= segments) break;
      if (!fetched_ahead<B>) fetch_rows<B>(rows, cols, index, true, next);
      TwoRows<B> now[row_tiles];
#pragma unroll
      for (int i = 0; i < row_tiles; ++i) now[i] = next[i];
      if (fetched_ahead<B>) fetch_rows<B>(rows, cols, index + 1, index + 1 < segments, next);
#pragma unroll
      for (int i = 0; i < row_tiles; ++i) now[i].ready();
      const int k = s * segment;
      Rule::template multiply<B>(now, xs.lane_data(threadIdx.x % 32 / 4, k), mma_vectors * xs.stride,
                                 xs.lane_scales(0, k), xs.columns, tiles, sums);
    }
    __syncthreads();
  }
  write_many(all, v, tile, rows, sums);
}

template <class Rule, BlockType B>
void launch_many(const Matrices& w, const Vectors& v, const Operand& operand, int processors, cudaStream_t stream) {
  const int tiles = tiles_of(v, many_vectors_tile), sets = sets_of(w);
  const std::int64_t rows = most_rows(w);
  if (tiles <= 0 || rows <= 0) return;
  const int rows_of_warp = mma_rows * (w.swiglu ? 1 : row_tiles);
  int warps = most_warps;
  while (warps > 1 && rows / (warps * rows_of_warp) * tiles * sets < 2 * processors) warps /= 2;
  const auto bytes = static_cast<std::size_t>(2 * SharedVectors<Rule>::bytes_for(many_vectors_tile, chunk));
  allow_shared(many_vectors<Rule, B>, bytes);
  launch(many_vectors<Rule, B>,
         dim3(blocks_for(rows, warps * rows_of_warp), static_cast<unsigned>(tiles), static_cast<unsigned>(sets)),
         static_cast<unsigned>(warps * 32), bytes, stream, w, v, operand);
}

template <class Rule, BlockType B>
void launch_product(Way way, const Matrices& w, const Vectors& v, const Operand& operand, int processors,
                    cudaStream_t stream) {
  if (way == Way::few)
    launch_few<Rule, B>(w, v, processors, stream);
  else
    launch_many<Rule, B>(w, v, operand, processors, stream);
}

}  // namespace moe_diag::cuda
