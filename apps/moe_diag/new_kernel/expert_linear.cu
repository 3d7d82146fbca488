// SPDX-License-Identifier: MIT
#include "core/api/kernel.hpp"
#include "gpu.cuh"

void refuse_without_gpu() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0)
    throw moe_diag::Error(moe_diag::ErrorKind::absent, "no CUDA device");
}

// Put your kernel in the place of `launch_multiply`.
void my_name_expert_linear(const moe_diag::ExpertLinearCall& call) {
  static GpuArray<float> x, out;
  static GpuArray<std::int32_t> ids;
  const std::int64_t slots = call.rows * call.used, vectors = call.x_by_slot ? slots : call.rows;
  const float* x_there = x.copy_of(call.x, vectors * call.weight.cols);
  const std::int32_t* ids_there = ids.copy_of(call.ids, slots);
  float* out_there = out.with_room_for(slots * call.weight.rows);
  launch_multiply(call.weight, x_there, ids_there, slots, slots / vectors, out_there);
  const auto bytes = static_cast<std::size_t>(slots * call.weight.rows) * sizeof(float);
  check(cudaMemcpy(call.out, out_there, bytes, cudaMemcpyDeviceToHost), "cudaMemcpy");
}
