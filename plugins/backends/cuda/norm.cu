// SPDX-License-Identifier: MIT
#include "plugins/backends/cuda/decode.cuh"
#include "plugins/backends/cuda/kernels.hpp"
#include "plugins/backends/cuda/launch.cuh"
#include "plugins/backends/cuda/norm.cuh"

namespace moe_diag::cuda {
namespace {

__global__ void norm_rows(const float* x, std::int64_t x_stride, int offset, Matrix w, int groups, int width, float eps,
                          float* y) {
  wait_for_earlier();
  const std::int64_t row = blockIdx.x / groups;
  x += row * x_stride + offset + std::int64_t{blockIdx.x % groups} * width;
  y += std::int64_t{blockIdx.x} * width;
  norm_row([&](int k) { return x[k]; }, w, width, eps, blockDim.x, [&](int k, float value) { y[k] = value; });
}

// One value of what is added to the residual, in the order of weigh, combine and add.
__device__ __forceinline__ float added(const Addend& a, std::int64_t row, int width, int k) {
  if (!a.weights) return a.x[row * width + k];
  constexpr int at_once = 8;  // slots whose values are on their way together
  const float* x = a.x + row * a.used * width + k;
  const float* weights = a.weights + row * a.used;
  float sum = 0.0f;
  for (int first = 0; first < a.used; first += at_once) {
    float product[at_once];
#pragma unroll
    for (int i = 0; i < at_once; ++i) {
      const int slot = min(first + i, a.used - 1);
      product[i] = x[std::int64_t{slot} * width] * weights[slot];
    }
#pragma unroll
    for (int i = 0; i < at_once; ++i)
      if (first + i < a.used) sum = first + i == 0 ? product[i] : sum + product[i];
  }
  return sum;
}

__global__ void add_norm_rows(const float* residual, Addend addend, int width, float* sum, Norm norm) {
  wait_for_earlier();
  const std::int64_t row = blockIdx.x;
  const auto make = [&](int k) {
    const float value = residual[row * width + k] + added(addend, row, width, k);
    sum[row * width + k] = value;
    return value;
  };
  norm_row(make, norm.w, width, norm.eps, blockDim.x, [&](int k, float value) { norm.y[row * width + k] = value; });
}

__global__ void add_rows(const float* residual, Addend addend, std::int64_t count, int width, float* sum) {
  wait_for_earlier();
  const std::int64_t at = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (at < count) sum[at] = residual[at] + added(addend, at / width, width, static_cast<int>(at % width));
}

}  // namespace

void rms_norm(const float* x, std::int64_t x_stride, int offset, const Matrix& w, int rows, int groups, int width,
              float eps, float* y, cudaStream_t stream) {
  if (rows == 0) return;
  launch(norm_rows, static_cast<unsigned>(rows * groups), threads_for(width), 0, stream, x, x_stride, offset, w, groups,
         width, eps, y);
}

void add_norm(const float* residual, const Addend& addend, int rows, int width, float* sum, const Norm& norm,
              cudaStream_t stream) {
  constexpr int block_threads = 256;
  const std::int64_t count = std::int64_t{rows} * width;
  if (norm.y)
    launch(add_norm_rows, static_cast<unsigned>(rows), threads_for(width), 0, stream, residual, addend, width, sum,
           norm);
  else
    launch(add_rows, blocks_for(count, block_threads), block_threads, 0, stream, residual, addend, count, width, sum);
}

}  // namespace moe_diag::cuda
