// SPDX-License-Identifier: MIT
#pragma once

// Products on the tensor cores, in the arithmetic of a Rule. A warp multiplies 16 weight rows, which it decodes in
// registers, with 8 vectors at a time; see mma.cuh for which lane holds what, and Part in decode.cuh for a row's
// values.
//
// A Rule has: bytes, of a vector's value as it is multiplied; scaled, whether its blocks of 32 have scales; store(),
// which makes it of f32; and multiply<B, M, N>(), which adds one segment of M tiles of rows times N of vectors to sums.

#include <algorithm>

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
    upper.fetch(first, cols, at, part);
    lower.fetch(second, cols, at, part);
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

// ---- few vectors: up to 8, whole in shared memory
// --------------------------------------------------------------------

// How a block's warps share its work: `across` of them a row's chunks in turn, `beside` tiles of rows side by side, and
// as much again for each matrix of a pair.
struct Split {
  int across, beside, steps, vectors;  // steps: how often a block goes on to its next rows
};

template <BlockType B>
constexpr bool whole_chunks = B == BlockType::q4_k || B == BlockType::q6_k;  // rows are chunks, and nothing behind them

// A chunk of a row as a warp keeps it in shared memory: its bytes in the 16-byte pieces they lie in, and rows so far
// apart that the reads of 8 rows lie in different banks. Only quantised types go that way: of others, a few rows fill
// it.
template <BlockType B>
struct StagedChunk {
  static constexpr bool used = B == BlockType::q4_k || B == BlockType::q6_k || B == BlockType::q8_0;
  static constexpr int bytes = B == BlockType::q4_k ? 144 : B == BlockType::q6_k ? 210 : 272;
  static constexpr int pieces = B == BlockType::q4_k ? 9 : B == BlockType::q6_k ? 14 : 18;
  static constexpr int stride = (pieces % 2 == 0 ? pieces + 1 : pieces) * 16;
  static constexpr int depth = B == BlockType::q4_k ? 3 : 2;  // chunks of a warp: one in use, the others on their way
  static constexpr int warp_bytes = used ? depth * mma_rows * stride : 0;
};

// Two rows of a lane within 16 of a matrix, from `row` on, which may be behind its end: then the last is read again,
// and nobody uses what comes of it. Loads without conditions are under way together.
struct LaneRows {
  const std::byte *upper, *lower;

  __device__ __forceinline__ LaneRows(const Matrix& w, int expert, std::int64_t first) {
    const std::int64_t row = first + threadIdx.x % 32 / 4;
    upper = w.data + expert * w.expert_bytes + min(row, w.rows - 1) * w.row_bytes;
    lower = w.data + expert * w.expert_bytes + min(row + 8, w.rows - 1) * w.row_bytes;
  }
  template <BlockType B>
  __device__ __forceinline__ void fetch(const Matrix& w, int at, TwoRows<B>& to) const {
    to.fetch(upper, lower, w.cols, min(at, ceil_div(w.cols, segment) - 1), threadIdx.x % 4);
  }
};

// What a warp multiplies one after the other: chunks of rows of one matrix, its own share of each row's, then those of
// its next rows.
template <BlockType B>
struct Chunks {
  const Matrix& w;
  const std::byte* data;  // of the expert
  std::int64_t row;       // of the first step
  int step, across, turn, per_step;

  __device__ __forceinline__ Chunks(const Matrix& matrix, int expert, std::int64_t first, const Split& split, int mine)
      : w(matrix),
        data(matrix.data + expert * matrix.expert_bytes),
        row(first),
        step(split.beside * mma_rows),
        across(split.across),
        turn(mine),
        per_step((ceil_div(matrix.cols, chunk) - mine + split.across - 1) / split.across) {}

  __device__ __forceinline__ int chunk_of(int i) const { return turn + i % per_step * across; }
  __device__ __forceinline__ const std::byte* source(int i, int r) const {
    const std::int64_t at = min(row + std::int64_t{i / per_step} * step + r, w.rows - 1);
    return data + at * w.row_bytes + chunk_of(i) * StagedChunk<B>::bytes;
  }
  // Begins to copy chunk i of the warp's 16 rows.
  __device__ __forceinline__ void begin(int i, std::byte* to) const {
    using Staged = StagedChunk<B>;
    const std::int64_t row_left = w.row_bytes - chunk_of(i) * Staged::bytes;
    for (int piece = threadIdx.x % 32; piece < mma_rows * Staged::pieces; piece += 32) {
      const int r = piece / Staged::pieces, at = piece % Staged::pieces * 16;
      const std::byte* from = source(i, r);
      const int before = static_cast<int>(reinterpret_cast<std::uintptr_t>(from) % 16);
      if (at < before + row_left) begin_copy<16>(to + r * Staged::stride + at, from - before + at);
    }
  }
  // A lane's row of chunk i: staged, or where it is.
  __device__ __forceinline__ const std::byte* lane_row(int i, int r, const std::byte* staged) const {
    if constexpr (StagedChunk<B>::used)
      return staged + r * StagedChunk<B>::stride + reinterpret_cast<std::uintptr_t>(source(i, r)) % 16;
    const std::int64_t at = min(row + std::int64_t{i / per_step} * step + r, w.rows - 1);
    return data + at * w.row_bytes + std::int64_t{chunk_of(i)} * chunk * (B == BlockType::f32 ? 4 : 2);
  }
};

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

// Adds up what the warps of each tile of rows have, in order, and writes the results.
__device__ __forceinline__ void write_few(const Matrices& all, int set, const Vectors& v, const Tile& tile,
                                          const Split& split, const float* partial, std::int64_t row) {
  constexpr int results = mma_rows * mma_vectors;
  for (int i = threadIdx.x; i < split.beside * results; i += blockDim.x) {
    const int lane = i % results / 4, m = lane % 4 * 2 + i % 2;
    const std::int64_t out = row + i / results * mma_rows + lane / 4 + i % 4 / 2 * 8;
    if (m >= tile.count || out >= all.w[set].rows) continue;
    float total[2] = {};
    const int sets = all.swiglu ? 2 : 1;
#pragma unroll
    for (int j = 0; j < 2; ++j)
      if (j < sets)
        for (int a = 0; a < split.across; ++a)
          total[j] += partial[((j * split.beside + i / results) * split.across + a) * results + i % results];
    all.y[set][result_row(v, tile.first + m) * v.y_stride + out] =
        all.swiglu ? swiglu_of(total[0], total[1]) : total[0];
  }
}

// Adds a chunk of two rows of each lane times the vectors.
template <class Rule, BlockType B>
__device__ __forceinline__ void multiply_chunk(const std::byte* upper, const std::byte* lower, std::int64_t cols,
                                               int at, const SharedVectors<Rule>& xs, int vector,
                                               float (&sums)[1][1][4]) {
  const std::int64_t left = cols - std::int64_t{at} * chunk;
#pragma unroll
  for (int s = 0; s < chunk_segments; ++s) {
    if (!whole_chunks<B> && s * segment >= left) break;
    TwoRows<B> rows[1];
    rows[0].fetch(upper, lower, left, s, threadIdx.x % 4);
    rows[0].ready();
    const int k = at * chunk + s * segment;
    Rule::template multiply<B, 1, 1>(rows, xs.lane_data(vector, k), 0, xs.lane_scales(0, k), xs.columns, sums);
  }
}

template <class Rule, BlockType B>
__global__ void __launch_bounds__(2 * most_warps * 32, 1) few_vectors(Matrices all, Vectors v, Split split) {
  extern __shared__ __align__(16) std::byte shared[];
  using Staged = StagedChunk<B>;
  const int warp = threadIdx.x / 32, warps = blockDim.x / 32, tile_of_rows = warp / split.across % split.beside;
  const int mine = all.swiglu ? warp / split.across / split.beside : blockIdx.z;  // of the matrices
  const Matrix& w = all.w[mine];
  const std::int64_t step = split.beside * mma_rows, begin = blockIdx.x * step * split.steps;
  const std::int64_t end = min(w.rows, begin + step * split.steps);
  if (begin >= end) return;
  if (by_expert(v)) wait_for_earlier();
  const Tile tile = tile_at(v, blockIdx.y, few_vectors_tile);
  if (tile.count <= 0) return;

  // The first rows are on their way while the vectors are waited for and read.
  const Chunks<B> chunks(w, tile.expert, begin + tile_of_rows * mma_rows, split, warp % split.across);
  const int count = chunks.per_step * ceil_div(end - begin, static_cast<int>(step));
  std::byte* stage = shared + warp * Staged::warp_bytes;
  const auto begin_chunk = [&](int i) {
    if constexpr (Staged::used) {
      if (i < count) chunks.begin(i, stage + i % Staged::depth * mma_rows * Staged::stride);
      end_of_copies();
    }
  };
  for (int i = 0; i < Staged::depth - 1; ++i) begin_chunk(i);
  if (!by_expert(v)) wait_for_earlier();
  const int padded = ceil_div(w.cols, chunk) * chunk;
  auto* partial = reinterpret_cast<float*>(shared + warps * Staged::warp_bytes);  // [warps][16 rows * 8 vectors]
  const SharedVectors<Rule> xs(reinterpret_cast<std::byte*>(partial + warps * mma_rows * mma_vectors), split.vectors,
                               padded);
  load_few<Rule>(v, tile, w.cols, padded, xs);
  __syncthreads();

  const int lane = threadIdx.x % 32, vector = min(lane / 4, tile.count - 1);  // the results of others are nobody's
  for (std::int64_t row = begin, i = 0; row < end; row += step) {
    float sums[1][1][4] = {};
    for (int n = 0; n < chunks.per_step; ++n, ++i) {
      copies_arrived<Staged::depth - 2>();
      __syncwarp();
      begin_chunk(static_cast<int>(i) + Staged::depth - 1);
      const int at = static_cast<int>(i);
      const std::byte* staged = stage + at % Staged::depth * mma_rows * Staged::stride;
      multiply_chunk<Rule, B>(chunks.lane_row(at, lane / 4, staged), chunks.lane_row(at, lane / 4 + 8, staged), w.cols,
                              chunks.chunk_of(at), xs, vector, sums);
    }
    *reinterpret_cast<float4*>(partial + (warp * 32 + lane) * 4) =
        float4{sums[0][0][0], sums[0][0][1], sums[0][0][2], sums[0][0][3]};
    __syncthreads();
    write_few(all, all.swiglu ? 0 : mine, v, tile, split, partial, row);
    __syncthreads();
  }
}

inline int chunks_of(std::int64_t cols) { return static_cast<int>((cols + chunk - 1) / chunk); }

// Of a block of so many warps; of a pair of matrices it has twice as many.
template <class Rule, BlockType B>
std::size_t few_vectors_bytes(std::int64_t cols, int vectors, int warps) {
  constexpr std::size_t partial = mma_rows * mma_vectors * sizeof(float);
  return static_cast<std::size_t>(warps) * (partial + StagedChunk<B>::warp_bytes) +
         static_cast<std::size_t>(SharedVectors<Rule>::bytes_for(vectors, chunks_of(cols) * chunk));
}

template <class Rule, BlockType B>
void launch_few(const Matrices& w, const Vectors& v, const Device& device, cudaStream_t stream) {
  const int tiles = tiles_of(v, few_vectors_tile), sets = sets_of(w);
  const std::int64_t rows = most_rows(w);
  if (tiles <= 0 || rows <= 0) return;
  const int chunks = chunks_of(w.w[0].cols);
  Split split;
  split.vectors = v.ids ? 1 : std::min(few_vectors_tile, v.count);
  const bool more_fit = few_vectors_bytes<Rule, B>(w.w[0].cols, split.vectors, 2 * most_warps) <= device.shared_bytes;
  split.across = std::min(w.swiglu || !more_fit ? most_warps : 2 * most_warps, chunks);
  split.beside = std::max(1, most_warps / split.across);
  // One block after the other on a processor would begin anew each time: so there are as many as run at once, and each
  // goes on to its next rows.
  const int step = split.beside * mma_rows, warps = split.beside * split.across * (w.swiglu ? 2 : 1);
  const std::int64_t at_once = std::int64_t{device.processors} * std::max(1, 2 * most_warps / warps);
  std::int64_t all_rows = 0;
  for (int i = 0; i < sets; ++i) all_rows += w.w[i].rows;
  split.steps = static_cast<int>(std::clamp<std::int64_t>((all_rows / step * tiles + at_once - 1) / at_once, 1, 64));
  const std::size_t bytes = few_vectors_bytes<Rule, B>(w.w[0].cols, split.vectors, warps);
  allow_shared(few_vectors<Rule, B>, bytes);
  launch(few_vectors<Rule, B>,
         dim3(blocks_for(rows, step * split.steps), static_cast<unsigned>(tiles), static_cast<unsigned>(sets)),
         static_cast<unsigned>(warps * 32), bytes, stream, w, v, split);
}

// ---- many vectors: up to 64, which pass through shared memory chunk by chunk
// ------------------------------------------

constexpr int vector_tiles = many_vectors_tile / mma_vectors;  // at most
constexpr int stages = 2;  // chunks in shared memory: one in use, the other on its way
constexpr int most_across = chunk_segments;

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

// Which rows a warp has, and which of the others have the rest of their sums: `across` neighbours take a row's segments
// in turn, and of a pair of matrices the second's rows are the next neighbours'.
struct Share {
  int across, turn, set;
  std::int64_t row;

  __device__ __forceinline__ Share(const Matrices& all, int among)
      : across(among), turn(static_cast<int>(threadIdx.x) / 32 % among) {
    const int group = static_cast<int>(threadIdx.x) / 32 / among, groups = most_warps / among;
    set = all.swiglu ? group % 2 : blockIdx.z;
    row = std::int64_t{mma_rows} * (all.swiglu ? blockIdx.x * (groups / 2) + group / 2 : blockIdx.x * groups + group);
  }
};

// Sums of one tile of vectors, with those of a neighbouring warp, which it left in shared memory.
__device__ __forceinline__ float4 with_neighbours(float4 own, const float4* left, int n, int first, int count) {
  for (int a = first; a < first + count; ++a) {
    const float4 other = left[(a * vector_tiles + n) * 32 + threadIdx.x % 32];
    own.x += other.x, own.y += other.y, own.z += other.z, own.w += other.w;
  }
  return own;
}

template <int N>
__device__ __forceinline__ void write_many(const Matrices& all, const Vectors& v, const Tile& tile, const Share& share,
                                           const float (&sums)[1][N][4], float4* left) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const bool writes = share.turn == 0 && (!all.swiglu || share.set == 0);
  if (share.across > 1 || all.swiglu) {
#pragma unroll
    for (int n = 0; n < N; ++n)
      if (!writes && n * mma_vectors < tile.count)
        left[(warp * vector_tiles + n) * 32 + lane] =
            float4{sums[0][n][0], sums[0][n][1], sums[0][n][2], sums[0][n][3]};
    __syncthreads();
  }
  if (!writes) return;
  const std::int64_t row = share.row + lane / 4, rows = all.w[share.set].rows;
#pragma unroll
  for (int n = 0; n < N; ++n) {
    if (n * mma_vectors >= tile.count) break;
    float4 sum = with_neighbours({sums[0][n][0], sums[0][n][1], sums[0][n][2], sums[0][n][3]}, left, n, warp + 1,
                                 share.across - 1);
    if (all.swiglu) {
      const float4 up = with_neighbours(left[((warp + share.across) * vector_tiles + n) * 32 + lane], left, n,
                                        warp + share.across + 1, share.across - 1);
      sum = {swiglu_of(sum.x, up.x), swiglu_of(sum.y, up.y), swiglu_of(sum.z, up.z), swiglu_of(sum.w, up.w)};
    }
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int m = n * mma_vectors + lane % 4 * 2 + c;
      if (m >= tile.count) continue;
      float* y = all.y[share.set] + result_row(v, tile.first + m) * v.y_stride;
      if (row < rows) y[row] = c == 0 ? sum.x : sum.y;
      if (row + 8 < rows) y[row + 8] = c == 0 ? sum.z : sum.w;
    }
  }
}

// Chunk after chunk, with N tiles of vectors, of which some may be nobody's.
template <class Rule, BlockType B, int N>
__device__ __forceinline__ void multiply_many(const Matrices& all, const Vectors& v, const Operand& operand,
                                              const Tile& tile, const Share& share, const int* sources,
                                              TwoRows<B> (&next)[1], const LaneRows& rows, std::byte* shared) {
  const Matrix& w = all.w[share.set];
  constexpr int bytes = SharedVectors<Rule>::bytes_for(many_vectors_tile, chunk);
  const auto buffer = [&](int at) {
    return SharedVectors<Rule>(shared + at % stages * bytes, many_vectors_tile, chunk);
  };
  const int segments = ceil_div(w.cols, segment), chunks = ceil_div(w.cols, chunk);
  float sums[1][N][4] = {};
  for (int at = 0; at < chunks; ++at) {
    copies_arrived<stages - 2>();
    __syncthreads();  // everybody's copies are there, and everybody is done with the buffer that comes next
    if (at + stages - 1 < chunks)
      begin_chunk<Rule>(operand, sources, tile.count, at + stages - 1, buffer(at + stages - 1));
    end_of_copies();
    const SharedVectors<Rule> xs = buffer(at);
    const int end = min(segments, (at + 1) * chunk_segments);
    for (int index = at * chunk_segments + share.turn; index < end; index += share.across) {
      TwoRows<B> now[1] = {next[0]};
      rows.fetch(w, index + share.across, next[0]);
      now[0].ready();
      const int k = index % chunk_segments * segment;
      Rule::template multiply<B, 1, N>(now, xs.lane_data(threadIdx.x % 32 / 4, k), mma_vectors * xs.stride,
                                       xs.lane_scales(0, k), xs.columns, sums);
    }
  }
  __syncthreads();
  write_many<N>(all, v, tile, share, sums, reinterpret_cast<float4*>(shared));
}

template <class Rule, BlockType B>
__global__ void __launch_bounds__(most_warps * 32, 2)
    many_vectors(Matrices all, Vectors v, Operand operand, int among) {
  extern __shared__ __align__(16) std::byte shared[];
  __shared__ int sources[many_vectors_tile];
  const Share share(all, among);
  const Matrix& w = all.w[share.set];
  if (std::int64_t{blockIdx.x} * (most_warps / among) * (all.swiglu ? mma_rows / 2 : mma_rows) >= w.rows) return;
  if (by_expert(v)) wait_for_earlier();
  const Tile tile = tile_at(v, blockIdx.y, many_vectors_tile);
  if (tile.count <= 0) return;
  const LaneRows rows(w, tile.expert, share.row);
  TwoRows<B> next[1];
  rows.fetch(w, share.turn, next[0]);
  if (!by_expert(v)) wait_for_earlier();
  for (int m = threadIdx.x; m < tile.count; m += blockDim.x) sources[m] = vector_row(v, tile.first + m);
  __syncthreads();
  constexpr int bytes = SharedVectors<Rule>::bytes_for(many_vectors_tile, chunk);
  for (int at = 0; at < stages - 1; ++at) {
    if (at * chunk < w.cols)
      begin_chunk<Rule>(operand, sources, tile.count, at, {shared + at * bytes, many_vectors_tile, chunk});
    end_of_copies();
  }
  const auto run = [&]<int N>() {
    multiply_many<Rule, B, N>(all, v, operand, tile, share, sources, next, rows, shared);
  };
  if (tile.count <= mma_vectors)
    run.template operator()<1>();
  else if (tile.count <= 4 * mma_vectors)
    run.template operator()<4>();
  else if (tile.count <= 6 * mma_vectors)
    run.template operator()<6>();
  else
    run.template operator()<8>();
}

template <class Rule>
constexpr std::size_t many_vectors_bytes() {
  return static_cast<std::size_t>(stages * SharedVectors<Rule>::bytes_for(many_vectors_tile, chunk));
}

template <class Rule, BlockType B>
void launch_many(const Matrices& w, const Vectors& v, const Operand& operand, const Device& device,
                 cudaStream_t stream) {
  const int tiles = tiles_of(v, many_vectors_tile), sets = sets_of(w);
  const std::int64_t rows = most_rows(w) * (w.swiglu ? 2 : 1);
  if (tiles <= 0 || rows <= 0) return;
  // Too few rows to fill the device: then more warps share each.
  int across = 1;
  const auto blocks = [&] { return blocks_for(rows, most_warps / across * mma_rows); };
  while (across < most_across && std::int64_t{blocks()} * tiles * sets < 2 * device.processors) across *= 2;
  constexpr std::size_t bytes = many_vectors_bytes<Rule>();
  static_assert(bytes >= most_warps * vector_tiles * 32 * sizeof(float4));  // for sums of neighbours
  allow_shared(many_vectors<Rule, B>, bytes);
  launch(many_vectors<Rule, B>, dim3(blocks(), static_cast<unsigned>(tiles), static_cast<unsigned>(sets)),
         most_warps * 32, bytes, stream, w, v, operand, across);
}

template <class Rule, BlockType B>
void launch_product(Way way, const Matrices& w, const Vectors& v, const Operand& operand, const Device& device,
                    cudaStream_t stream) {
  if (way == Way::few)
    launch_few<Rule, B>(w, v, device, stream);
  else
    launch_many<Rule, B>(w, v, operand, device, stream);
}

}  // namespace moe_diag::cuda
