// SPDX-License-Identifier: MIT
#include "plugins/backends/cuda/products.cuh"

// Products in bf16: weights and vectors rounded to nearest even, sums in f32 on the tensor cores.
namespace moe_diag::cuda {
namespace {

struct Bf16 {
  static constexpr int bytes = 2;
  static constexpr bool scaled = false;

  static __device__ __forceinline__ void store(const float (&x)[8], std::byte* to, BlockScale*) {
    *reinterpret_cast<uint4*>(to) = eight_bf16(x);
  }

  // Adds a segment of M tiles of rows by N tiles of vectors, `apart` bytes from each other, to `sums`.
  template <BlockType B, int M, int N>
  static __device__ __forceinline__ void multiply(const TwoRows<B> (&rows)[M], const std::byte* x, int apart,
                                                  const BlockScale*, int, float (&sums)[M][N][4]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      unsigned a[M][2][4];
#pragma unroll
      for (int m = 0; m < M; ++m)
#pragma unroll
        for (int j = 0; j < 2; ++j)
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int at = 4 * j + 2 * i;
            a[m][j][2 * i] = two_bf16(rows[m].upper.value(h, at), rows[m].upper.value(h, at + 1));
            a[m][j][2 * i + 1] = two_bf16(rows[m].lower.value(h, at), rows[m].lower.value(h, at + 1));
          }
      // Several sums at once: each instruction waits for the one before it of the same sum.
      constexpr int at_once = N % 4 == 0 ? 4 : N % 3 == 0 ? 3 : 1;
#pragma unroll
      for (int first = 0; first < N; first += at_once) {
        uint4 b[at_once];
#pragma unroll
        for (int n = 0; n < at_once; ++n)
          b[n] = *reinterpret_cast<const uint4*>(x + (first + n) * apart + h * 32 * bytes);
#pragma unroll
        for (int j = 0; j < 2; ++j)
#pragma unroll
          for (int n = 0; n < at_once; ++n)
#pragma unroll
            for (int m = 0; m < M; ++m)
              multiply_bf16(sums[m][first + n], a[m][j], j == 0 ? b[n].x : b[n].z, j == 0 ? b[n].y : b[n].w);
      }
    }
  }
};

}  // namespace

std::size_t few_bytes_bf16(std::int64_t cols) {
  return few_vectors_bytes<Bf16, BlockType::q8_0>(cols, few_vectors_tile, 2 * most_warps);
}

std::size_t many_bytes_bf16() { return many_vectors_bytes<Bf16>(); }

void products_bf16(Way way, const Matrices& w, const Vectors& v, const Operand& operand, const Device& device,
                   cudaStream_t stream) {
  switch (w.w[0].type) {
    case BlockType::f32: return launch_product<Bf16, BlockType::f32>(way, w, v, operand, device, stream);
    case BlockType::f16: return launch_product<Bf16, BlockType::f16>(way, w, v, operand, device, stream);
    case BlockType::bf16: return launch_product<Bf16, BlockType::bf16>(way, w, v, operand, device, stream);
    case BlockType::q8_0: return launch_product<Bf16, BlockType::q8_0>(way, w, v, operand, device, stream);
    case BlockType::q4_k: return launch_product<Bf16, BlockType::q4_k>(way, w, v, operand, device, stream);
    case BlockType::q6_k: return launch_product<Bf16, BlockType::q6_k>(way, w, v, operand, device, stream);
    default: return;  // refused: see multiplies()
  }
}

}  // namespace moe_diag::cuda
