// SPDX-License-Identifier: MIT
#include "plugins/backends/cuda/operand.cuh"

#include "plugins/backends/cuda/kernels.hpp"
#include "plugins/backends/cuda/launch.cuh"

namespace moe_diag::cuda {
namespace {

constexpr int block_threads = 256;
constexpr int pad = 256;  // values: a block of the K-quants

template <bool Quantise>
__global__ void prepare_rows(const float* x, std::int64_t x_stride, std::int64_t cols, std::int64_t count,
                             Operand operand) {
  wait_for_earlier();
  const std::int64_t at = std::int64_t{blockIdx.x} * block_threads + threadIdx.x;
  if (at >= count) return;  // whole warps: rows are padded to 32 times 8 values
  const std::int64_t per_row = operand.padded / 8, row = at / per_row, k = at % per_row * 8;
  float values[8];
  load_eight(x + row * x_stride, k, cols, aligned_rows(x, x_stride), values);
  if constexpr (Quantise) {
    BlockScale scale;
    reinterpret_cast<uint2*>(operand.data)[at] = eight_int8(values, scale);
    if (at % 4 == 0) reinterpret_cast<BlockScale*>(operand.scales)[at / 4] = scale;
  } else {
    reinterpret_cast<uint4*>(operand.data)[at] = eight_bf16(values);
  }
}

}  // namespace

std::int64_t padded_cols(std::int64_t cols) { return (cols + pad - 1) / pad * pad; }

std::size_t operand_bytes(Numerics numerics, std::int64_t cols, std::int64_t rows) {
  if (numerics == Numerics::f32) return 0;
  return static_cast<std::size_t>(padded_cols(cols) * rows) * (numerics == Numerics::bf16 ? 2 : 1);
}

std::size_t scale_bytes(Numerics numerics, std::int64_t cols, std::int64_t rows) {
  if (numerics != Numerics::q8_1) return 0;
  return static_cast<std::size_t>(padded_cols(cols) / 32 * rows) * sizeof(BlockScale);
}

void prepare(Numerics numerics, const float* x, std::int64_t x_stride, std::int64_t cols, int rows,
             const Operand& operand, cudaStream_t stream) {
  const std::int64_t count = operand.padded / 8 * rows;
  if (count == 0 || numerics == Numerics::f32) return;
  const auto kernel = numerics == Numerics::q8_1 ? prepare_rows<true> : prepare_rows<false>;
  launch(kernel, blocks_for(count, block_threads), block_threads, 0, stream, x, x_stride, cols, count, operand);
}

}  // namespace moe_diag::cuda
