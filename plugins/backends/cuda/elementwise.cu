// SPDX-License-Identifier: MIT
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "plugins/backends/cuda/decode.cuh"
#include "plugins/backends/cuda/kernels.hpp"
#include "plugins/backends/cuda/launch.cuh"
#include "plugins/backends/cuda/vectors.cuh"

// Operators whose every result is a thread's own.
namespace moe_diag::cuda {
namespace {

constexpr int block_threads = 256;

__global__ void embed_rows(Matrix table, const std::int32_t* tokens, float* out) {
  wait_for_earlier();
  const std::byte* row = table.data + tokens[blockIdx.x] * table.row_bytes;
  for (int k = threadIdx.x; k < table.cols; k += blockDim.x)
    out[std::int64_t{blockIdx.x} * table.cols + k] = decode_at(table.type, row, k);
}

__global__ void add_all(const float* a, const float* b, std::int64_t count, float* y) {
  wait_for_earlier();
  const std::int64_t at = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at < count) y[at] = a[at] + b[at];
}

__global__ void swiglu_all(const float* gate, const float* up, std::int64_t count, float* y) {
  wait_for_earlier();
  const std::int64_t at = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at < count) y[at] = swiglu_of(gate[at], up[at]);
}

__global__ void round_all(float* values, std::int64_t count, bool to_f16) {
  wait_for_earlier();
  const std::int64_t at = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at >= count) return;
  const float x = values[at];
  values[at] = to_f16 ? __half2float(__float2half_rn(x)) : __bfloat162float(__float2bfloat16_rn(x));
}

__global__ void weigh_rows(const float* x, const float* weights, std::int64_t count, int width, float* y) {
  wait_for_earlier();
  const std::int64_t at = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at < count) y[at] = x[at] * weights[at / width];
}

__global__ void combine_rows(const float* x, std::int64_t count, int used, int width, float* y) {
  wait_for_earlier();
  const std::int64_t at = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at >= count) return;
  x += at / width * used * width + at % width;
  float sum = x[0];
  for (int slot = 1; slot < used; ++slot) sum += x[std::int64_t{slot} * width];
  y[at] = sum;
}

__global__ void add_bias_rows(Matrix bias, std::int64_t stride, std::int64_t count, float* y) {
  wait_for_earlier();
  const std::int64_t at = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at >= count) return;
  const int k = static_cast<int>(at % bias.cols);
  y[at / bias.cols * stride + k] += decode_at(bias.type, bias.data, k);
}

__global__ void sigmoid_gate_rows(const float* x, const float* gates, std::int64_t count, int width, float* y) {
  wait_for_earlier();
  const std::int64_t at = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at < count) y[at] = x[at] * (1.0f / (1.0f + expf(-gates[at / width])));
}

}  // namespace

void embed(const Matrix& table, const std::int32_t* tokens, int rows, float* out, cudaStream_t stream) {
  if (rows == 0) return;
  launch(embed_rows, static_cast<unsigned>(rows), block_threads, 0, stream, table, tokens, out);
}

void add(const float* a, const float* b, std::int64_t count, float* y, cudaStream_t stream) {
  launch(add_all, blocks_for(count, block_threads), block_threads, 0, stream, a, b, count, y);
}

void swiglu(const float* gate, const float* up, std::int64_t count, float* y, cudaStream_t stream) {
  launch(swiglu_all, blocks_for(count, block_threads), block_threads, 0, stream, gate, up, count, y);
}

void round_values(float* values, std::int64_t count, bool to_f16, cudaStream_t stream) {
  if (count == 0) return;
  launch(round_all, blocks_for(count, block_threads), block_threads, 0, stream, values, count, to_f16);
}

void weigh(const float* x, const float* weights, std::int64_t rows, int width, float* y, cudaStream_t stream) {
  const std::int64_t count = rows * width;
  launch(weigh_rows, blocks_for(count, block_threads), block_threads, 0, stream, x, weights, count, width, y);
}

void add_bias(const Matrix& bias, int rows, std::int64_t stride, float* y, cudaStream_t stream) {
  const std::int64_t count = std::int64_t{rows} * bias.cols;
  if (count == 0) return;
  launch(add_bias_rows, blocks_for(count, block_threads), block_threads, 0, stream, bias, stride, count, y);
}

void sigmoid_gate(const float* x, const float* gates, int rows, int width, float* y, cudaStream_t stream) {
  const std::int64_t count = std::int64_t{rows} * width;
  launch(sigmoid_gate_rows, blocks_for(count, block_threads), block_threads, 0, stream, x, gates, count, width, y);
}

void combine(const float* x, int rows, int used, int width, float* y, cudaStream_t stream) {
  const std::int64_t count = std::int64_t{rows} * width;
  launch(combine_rows, blocks_for(count, block_threads), block_threads, 0, stream, x, count, used, width, y);
}

}  // namespace moe_diag::cuda
