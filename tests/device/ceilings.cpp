// SPDX-License-Identifier: MIT
#include "tests/device/ceilings.hpp"

#include <cuda_runtime_api.h>
#if defined(MOE_DIAG_WITH_CUBLAS)
#include <cublas_v2.h>
#endif

#include <algorithm>
#include <cstddef>
#include <functional>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace moe_diag::test {
namespace {

void check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(std::string("ceilings: ") + cudaGetErrorString(status));
}

// The median of the seconds a piece of device work takes.
double seconds_of(const std::function<void()>& work) {
  cudaEvent_t begin = nullptr, end = nullptr;
  check(cudaEventCreate(&begin));
  check(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < 9; ++i) {
    check(cudaEventRecord(begin));
    work();
    check(cudaEventRecord(end));
    check(cudaEventSynchronize(end));
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, begin, end));
    times.push_back(milliseconds);
  }
  check(cudaEventDestroy(begin));
  check(cudaEventDestroy(end));
  std::sort(times.begin(), times.end());
  return static_cast<double>(times[times.size() / 2]) / 1e3;
}

#if defined(MOE_DIAG_WITH_CUBLAS)
constexpr int side = 8192;

double products(cublasHandle_t handle, void* a, void* b, void* c, cudaDataType type) {
  const float one = 1, zero = 0;
  const double seconds = seconds_of([&] {
    if (cublasGemmEx(handle, CUBLAS_OP_T, CUBLAS_OP_N, side, side, side, &one, a, type, side, b, type, side, &zero, c,
                     CUDA_R_32F, side, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT) != CUBLAS_STATUS_SUCCESS)
      throw std::runtime_error("ceilings: a matrix product failed");
  });
  return 2.0 * side * side * side / seconds;
}

// On random values: on zeros the card is faster.
void measure_products(Ceilings& found) {
  constexpr std::size_t count = std::size_t{side} * side;
  std::vector<float> values(count);
  std::mt19937 random(1);
  for (float& v : values) v = static_cast<float>(random()) / 4e9F - 0.5F;
  void *a = nullptr, *b = nullptr, *c = nullptr;
  for (void** memory : {&a, &b, &c}) check(cudaMalloc(memory, count * sizeof(float)));
  for (void* memory : {a, b}) check(cudaMemcpy(memory, values.data(), count * sizeof(float), cudaMemcpyHostToDevice));
  cublasHandle_t handle = nullptr;
  if (cublasCreate(&handle) == CUBLAS_STATUS_SUCCESS) {
    found.f32_products = products(handle, a, b, c, CUDA_R_32F);
    // Halves of floats are random bf16, of which some are large: clipped to the sign and a small exponent.
    std::vector<unsigned short> halves(count);
    for (unsigned short& v : halves) v = static_cast<unsigned short>((random() & 0x80FF) | 0x3F00);
    for (void* memory : {a, b})
      check(cudaMemcpy(memory, halves.data(), count * sizeof(unsigned short), cudaMemcpyHostToDevice));
    found.bf16_products = products(handle, a, b, c, CUDA_R_16BF);
    cublasDestroy(handle);
  }
  for (void* memory : {a, b, c}) check(cudaFree(memory));
}
#endif

}  // namespace

Ceilings measure_ceilings() {
  Ceilings found;
  constexpr std::size_t bytes = std::size_t{1} << 30;
  void *from = nullptr, *to = nullptr, *host = nullptr;
  check(cudaMalloc(&from, bytes));
  check(cudaMalloc(&to, bytes));
  check(cudaHostAlloc(&host, bytes, cudaHostAllocDefault));
  check(cudaMemset(from, 1, bytes));
  const auto rate = [&](void* target, const void* source, cudaMemcpyKind kind) {
    return static_cast<double>(bytes) /
           seconds_of([&] { check(cudaMemcpyAsync(target, source, bytes, kind, nullptr)); });
  };
  found.device_copy = 2 * rate(to, from, cudaMemcpyDeviceToDevice);
  found.to_device = rate(to, host, cudaMemcpyHostToDevice);
  found.to_host = rate(host, from, cudaMemcpyDeviceToHost);
  check(cudaFree(from));
  check(cudaFree(to));
  check(cudaFreeHost(host));
#if defined(MOE_DIAG_WITH_CUBLAS)
  measure_products(found);
#endif
  return found;
}

}  // namespace moe_diag::test
