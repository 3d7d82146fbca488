// SPDX-License-Identifier: MIT
#pragma once

// Which vectors a block multiplies, and where they and their results are.

#include "plugins/backends/cuda/kernels.hpp"

namespace moe_diag::cuda {

__device__ __forceinline__ Tile tile_at(const Vectors& v, int index, int size) {
  if (v.ids) return {v.ids[index], index, 1};
  if (v.tiles) return index < *v.tile_count ? v.tiles[index] : Tile{0, 0, 0};
  return {0, index * size, min(size, v.count - index * size)};
}
__device__ __forceinline__ int result_row(const Vectors& v, int i) { return v.order ? v.order[i] : i; }
__device__ __forceinline__ int vector_row(const Vectors& v, int i) { return result_row(v, i) / v.divide; }
__device__ __forceinline__ const float* vector_at(const Vectors& v, int i) {
  return v.x + std::int64_t{vector_row(v, i)} * v.x_stride;
}
// True when which expert comes where was computed by an earlier kernel.
__device__ __forceinline__ bool by_expert(const Vectors& v) { return v.ids || v.tiles; }

__device__ __forceinline__ int ceil_div(std::int64_t a, int b) { return static_cast<int>((a + b - 1) / b); }

// One silu(gate) * up: the same wherever it is computed.
__device__ __forceinline__ float swiglu_of(float gate, float up) { return gate / (1.0f + expf(-gate)) * up; }

inline int tiles_of(const Vectors& v, int tile) {
  return v.ids ? v.count : v.tiles ? v.most_tiles : (v.count + tile - 1) / tile;
}

inline std::int64_t most_rows(const Matrices& w) {
  std::int64_t rows = 0;
  for (int i = 0; i < w.count; ++i) rows = rows < w.w[i].rows ? w.w[i].rows : rows;
  return rows;
}
// Launches of one product over its matrices: gate and up are one.
inline int sets_of(const Matrices& w) { return w.swiglu ? 1 : w.count; }

}  // namespace moe_diag::cuda
