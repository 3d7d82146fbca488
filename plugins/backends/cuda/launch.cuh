// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "plugins/backends/cuda/device.hpp"

// How kernels follow each other: on Hopper and newer a kernel begins while the one before it ends. So every kernel
// calls wait_for_earlier() before it touches what an earlier one wrote or still reads, and is launched by launch().
namespace moe_diag::cuda {

__device__ __forceinline__ void wait_for_earlier() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;\ngriddepcontrol.wait;" ::: "memory");
#endif
}

// True when the code that runs has the instructions above: PTX for older devices, compiled anew on newer ones, has not.
template <class... P>
bool may_begin_early(void (*kernel)(P...)) {
  cudaFuncAttributes attributes{};
  MOE_DIAG_CUDA(cudaFuncGetAttributes(&attributes, kernel));
  return attributes.ptxVersion >= 90;
}

template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, std::size_t shared, cudaStream_t stream, A... arguments) {
  static const bool early = may_begin_early(kernel);  // of one build, all kernels are alike
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = early ? 1 : 0;
  MOE_DIAG_CUDA(cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...));
}

// More shared memory than every kernel may have.
template <class... P>
void allow_shared(void (*kernel)(P...), std::size_t bytes) {
  constexpr std::size_t always = 48 * 1024;
  if (bytes > always)
    MOE_DIAG_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
}

inline unsigned blocks_for(std::int64_t count, int per_block) {
  return static_cast<unsigned>((count + per_block - 1) / per_block);
}

}  // namespace moe_diag::cuda
