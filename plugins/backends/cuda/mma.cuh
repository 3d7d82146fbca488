// SPDX-License-Identifier: MIT
#pragma once

#include <cuda_bf16.h>

// The tensor cores' products of 16 weight rows and 8 vectors. Lane l = 4 g + t of a warp holds of the weights rows g
// and g + 8, of the vectors vector g, and of the results c[0], c[1]: row g, vectors 2t and 2t + 1; c[2], c[3]: row g
// + 8. Which value of a row stands where within k is free, as long as weights and vectors agree. Devices older than
// compute capability 8.0 have no such instructions: there the same sums are made by hand, slowly.
namespace moe_diag::cuda {

// Values as bf16, rounded to nearest even; the first in the low half.
__device__ __forceinline__ unsigned two_bf16(float first, float second) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(first, second);
  return *reinterpret_cast<const unsigned*>(&both);
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800

// 16 values of k: a[0], a[2] of row g, a[1], a[3] of row g + 8, with b[0] and b[1] of the vector.
__device__ __forceinline__ void multiply_bf16(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 32 values of k, signed bytes, likewise.
__device__ __forceinline__ void multiply_int8(int (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#else

// Calls sum(result, of the weights, of the vector) for every result and every register of k.
template <class Sum>
__device__ __forceinline__ void by_hand(const unsigned (&a)[4], unsigned b0, unsigned b1, Sum sum) {
  const int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  for (int i = 0; i < 8; ++i) {
    const unsigned upper = __shfl_sync(~0u, i < 4 ? a[0] : a[2], g * 4 + i % 4);
    const unsigned lower = __shfl_sync(~0u, i < 4 ? a[1] : a[3], g * 4 + i % 4);
    const unsigned left = __shfl_sync(~0u, i < 4 ? b0 : b1, t * 8 + i % 4);
    const unsigned right = __shfl_sync(~0u, i < 4 ? b0 : b1, t * 8 + 4 + i % 4);
    sum(0, upper, left);
    sum(1, upper, right);
    sum(2, lower, left);
    sum(3, lower, right);
  }
}

__device__ __forceinline__ void multiply_bf16(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  by_hand(a, b0, b1, [&](int i, unsigned w, unsigned x) {
    c[i] = fmaf(__uint_as_float(w << 16), __uint_as_float(x << 16), c[i]);
    c[i] = fmaf(__uint_as_float(w & 0xFFFF0000u), __uint_as_float(x & 0xFFFF0000u), c[i]);
  });
}

__device__ __forceinline__ void multiply_int8(int (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  by_hand(a, b0, b1,
          [&](int i, unsigned w, unsigned x) { c[i] = __dp4a(static_cast<int>(w), static_cast<int>(x), c[i]); });
}

#endif

// 16 and 8 bytes from device to shared memory, there after the next copies_arrived().
template <int Bytes>
__device__ __forceinline__ void begin_copy(void* shared, const void* global) {
#if __CUDA_ARCH__ >= 800
  const auto to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  if constexpr (Bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(to), "l"(global) : "memory");
#else
  if constexpr (Bytes == 16)
    *static_cast<uint4*>(shared) = *static_cast<const uint4*>(global);
  else
    *static_cast<uint2*>(shared) = *static_cast<const uint2*>(global);
#endif
}

// What was begun since the last call belongs together.
__device__ __forceinline__ void end_of_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most `Later` of the groups are under way.
template <int Later>
__device__ __forceinline__ void copies_arrived() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(Later) : "memory");
#endif
}

}  // namespace moe_diag::cuda
