// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <string>

#include "core/api/error.hpp"
#include "core/api/model.hpp"

// Memory on the GPU, errors that end the run with a message, and a product to begin with.

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    throw moe_diag::Error(moe_diag::ErrorKind::environment, std::string(what) + ": " + cudaGetErrorString(error));
}

// An array that grows, and stays.
template <class T>
class GpuArray {
 public:
  GpuArray() = default;
  GpuArray(const GpuArray&) = delete;
  GpuArray& operator=(const GpuArray&) = delete;
  ~GpuArray() { cudaFree(data_); }

  T* with_room_for(std::int64_t count) {
    if (count > size_) {
      cudaFree(data_);
      check(cudaMalloc(&data_, static_cast<std::size_t>(count) * sizeof(T)), "cudaMalloc");
      size_ = count;
    }
    return data_;
  }
  const T* copy_of(const T* host, std::int64_t count) {
    with_room_for(count);
    check(cudaMemcpy(data_, host, static_cast<std::size_t>(count) * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy");
    return data_;
  }

 private:
  T* data_ = nullptr;
  std::int64_t size_ = 0;
};

// A weight as the file has it, copied to the GPU when it is used for the first time.
inline const std::byte* on_gpu(const moe_diag::Weight& weight) {
  static std::map<const std::byte*, GpuArray<std::byte>> copies;
  const auto [at, fresh] = copies.try_emplace(weight.data);
  if (fresh) at->second.copy_of(weight.data, static_cast<std::int64_t>(weight.bytes()));
  return at->second.with_room_for(0);
}

// out[slot, r] = W[ids[slot]] row r . x, in bf16 with sums in float: a warp for each value of the result. `weight`: its
// sizes; its values are at `matrix`. Slot s reads x from vector s / per_vector.
static __global__ void multiply(moe_diag::Weight weight, std::int64_t row_bytes, const std::byte* matrix,
                                const float* x, const std::int32_t* ids, std::int64_t slots, std::int64_t per_vector,
                                float* out) {
  const std::int64_t at = (std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32;
  if (at >= slots * weight.rows) return;
  const std::int64_t slot = at / weight.rows, row = at % weight.rows;
  const std::byte* w = matrix + (ids[slot] * weight.rows + row) * row_bytes;
  x += slot / per_vector * weight.cols;
  float sum = 0;
  for (std::int64_t c = threadIdx.x % 32; c < weight.cols; c += 32)
    sum += __bfloat162float(__float2bfloat16(moe_diag::decode<float>(weight.type, w, c))) *
           __bfloat162float(__float2bfloat16(x[c]));
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
  if (threadIdx.x % 32 == 0) out[at] = sum;
}

inline void launch_multiply(const moe_diag::Weight& weight, const float* x, const std::int32_t* ids, std::int64_t slots,
                            std::int64_t per_vector, float* out) {
  constexpr int threads = 256;
  const std::int64_t warps = slots * weight.rows;
  multiply<<<static_cast<unsigned>((warps * 32 + threads - 1) / threads), threads>>>(
      weight, static_cast<std::int64_t>(weight.row_bytes()), on_gpu(weight), x, ids, slots, per_vector, out);
  check(cudaGetLastError(), "launch");
}
