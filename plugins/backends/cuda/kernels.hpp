// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "core/api/blocks.hpp"

// The arithmetic of the cuda lanes, all of it launched on the stream given. Nothing here waits.
//
// Every dot product follows one rule, so that the bytes do not depend on how many rows are computed at once: k is cut
// into segments of 64, each summed with fused multiply-adds in the order of k, and the sums of the segments are added
// in their order. What is a sum of another kind (norms, softmax) has a tree that depends on its length alone.
namespace moe_diag::cuda {

inline constexpr int segment = 64;

// A weight on the device, in its file's block format, 256-byte aligned and with room to read 4 bytes past its end.
struct Matrix {
  const std::byte* data = nullptr;
  BlockType type = BlockType::f32;
  std::int64_t cols = 0, rows = 0;
  std::size_t row_bytes = 0, expert_bytes = 0;
};

// Vectors [first, first + count) of one expert.
struct Tile {
  int expert, first, count;
};

// Up to three matrices of one type and width, each with the place of its results: one launch computes them all.
struct Matrices {
  Matrix w[3];
  float* y[3] = {};
  int count = 0;
};

// What matrices are multiplied with. Vector v is row order[v] / divide of x and its result row order[v] of y; without
// an order, row v of both.
struct Vectors {
  const float* x = nullptr;
  std::int64_t x_stride = 0, y_stride = 0;
  const int* order = nullptr;
  int divide = 1;
  const Tile* tiles = nullptr;  // on the device, with their count; null: `count` vectors, all of one matrix
  const int* tile_count = nullptr;
  int count = 0;
  int most_tiles = 0;
};

// Two kernels with the same bytes: one decodes weights in registers for up to 4 vectors, one in shared memory for 32.
inline constexpr int few_tile = 4, many_tile = 32;

// True when the kernel for few vectors can hold 4 of `cols` values in shared memory.
bool few_fits(std::int64_t cols, std::size_t shared_bytes);
void products(const Matrices& w, const Vectors& v, int tile, int processors, cudaStream_t stream);

// Sorts the `count` ids by expert: order, and tiles of at most `tile`. `shift` is Params::expert_shift.
void group_by_expert(const std::int32_t* ids, int count, int experts, int shift, int tile, int* order, Tile* tiles,
                     int* tile_count, cudaStream_t stream);

void embed(const Matrix& table, const std::int32_t* tokens, int rows, float* out, cudaStream_t stream);

// Groups of `width` values from column `offset` of rows of `x_stride`; the rows of y are groups * width long.
void rms_norm(const float* x, std::int64_t x_stride, int offset, const Matrix& w, int rows, int groups, int width,
              float eps, float* y, cudaStream_t stream);

// cosines and sines: [total, half].
void angles(double theta, int total, int head_dim, float* cosines, float* sines, cudaStream_t stream);
void rope(const float* x, const float* cosines, const float* sines, const int* first, int rows, int heads, int head_dim,
          float* y, cudaStream_t stream);

// Row r becomes position *first + r of the cache.
void append(const float* x, std::int64_t x_stride, int offset, int rows, int width, const int* first, float* cache,
            cudaStream_t stream);

struct Attention {
  int rows = 0, heads = 0, kv_heads = 0, head_dim = 0, total = 0;
  const int* first = nullptr;  // position of row 0, on the device, so that a recorded graph serves every position
};
void scores(const float* q, const float* keys, const Attention& a, float scale, float* out, cudaStream_t stream);
void mix(const float* p, const float* values, const Attention& a, float* out, cudaStream_t stream);

// Rows of `width`, `groups` to a position; causal (first != null): over the keys up to the own position, 0 after it.
void softmax(const float* x, int rows, int groups, int width, const int* first, float* y, cudaStream_t stream);
void topk(const float* probs, int rows, int experts, int used, std::int32_t* ids, float* weights, cudaStream_t stream);

void add(const float* a, const float* b, std::int64_t count, float* y, cudaStream_t stream);
void swiglu(const float* gate, const float* up, std::int64_t count, float* y, cudaStream_t stream);
void weigh(const float* x, const float* weights, std::int64_t rows, int width, float* y, cudaStream_t stream);
void combine(const float* x, int rows, int used, int width, float* y, cudaStream_t stream);

// weigh, combine and add in one, for when nobody looks at what is between them: y = residual + combined.
void combine_into(const float* x, const float* weights, const float* residual, int rows, int used, int width, float* y,
                  cudaStream_t stream);

}  // namespace moe_diag::cuda
