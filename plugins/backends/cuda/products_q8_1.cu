// SPDX-License-Identifier: MIT
#include "plugins/backends/cuda/products.cuh"

// Products of quantised weights as they stand in their blocks with vectors quantised in blocks of 32: sums of whole
// numbers on the tensor cores, times both scales, added in f32 block after block.
namespace moe_diag::cuda {
namespace {

// A sum of whole numbers below 2^22 as float, exactly: it was begun at this, which is 1.5 * 2^23 as float.
constexpr int sum_begin = 0x4B400000;
__device__ __forceinline__ float float_of_sum(int sum) { return __int_as_float(sum) - 12582912.0f; }

struct Q8_1 {
  static constexpr int bytes = 1;
  static constexpr bool scaled = true;

  static __device__ __forceinline__ void store(const float (&x)[8], std::byte* to, BlockScale* scale) {
    BlockScale block;
    *reinterpret_cast<uint2*>(to) = eight_int8(x, block);
    if (threadIdx.x % 4 == 0) *scale = block;
  }

  // The scales of a lane's two rows, for one sum of whole numbers.
  struct RowScales {
    float upper, lower;
  };

  // Adds the whole numbers of M tiles of rows, each times its row's scale and its vector's.
  template <int M, int N>
  static __device__ __forceinline__ void add_block(const unsigned (&a)[M][4], const RowScales (&scales)[M],
                                                   const std::byte* x, int apart, const BlockScale* s,
                                                   float (&sums)[M][N][4]) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const uint2 b = *reinterpret_cast<const uint2*>(x + n * apart);
      const float4 both = *reinterpret_cast<const float4*>(s + n * mma_vectors);
#pragma unroll
      for (int m = 0; m < M; ++m) {
        int c[4] = {sum_begin, sum_begin, sum_begin, sum_begin};
        multiply_int8(c, a[m], b.x, b.y);
        sums[m][n][0] = fmaf(scales[m].upper * both.x, float_of_sum(c[0]), sums[m][n][0]);
        sums[m][n][1] = fmaf(scales[m].upper * both.z, float_of_sum(c[1]), sums[m][n][1]);
        sums[m][n][2] = fmaf(scales[m].lower * both.x, float_of_sum(c[2]), sums[m][n][2]);
        sums[m][n][3] = fmaf(scales[m].lower * both.z, float_of_sum(c[3]), sums[m][n][3]);
      }
    }
  }

  // Takes off the minima of Q4_K, times the sums of the vectors' blocks.
  template <int M, int N>
  static __device__ __forceinline__ void take_minima(const RowScales (&minima)[M], const BlockScale* s,
                                                     float (&sums)[M][N][4]) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const float4 both = *reinterpret_cast<const float4*>(s + n * mma_vectors);
#pragma unroll
      for (int m = 0; m < M; ++m) {
        sums[m][n][0] = fmaf(-minima[m].upper, both.y, sums[m][n][0]);
        sums[m][n][1] = fmaf(-minima[m].upper, both.w, sums[m][n][1]);
        sums[m][n][2] = fmaf(-minima[m].lower, both.y, sums[m][n][2]);
        sums[m][n][3] = fmaf(-minima[m].lower, both.w, sums[m][n][3]);
      }
    }
  }

  // Adds a segment of M tiles of rows by N tiles of vectors, `apart` bytes from each other, to `sums`.
  template <BlockType B, int M, int N>
  static __device__ __forceinline__ void multiply(const TwoRows<B> (&rows)[M], const std::byte* x, int apart,
                                                  const BlockScale* s, int columns, float (&sums)[M][N][4]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      unsigned a[M][4];
      RowScales scales[M], minima[M];
#pragma unroll
      for (int m = 0; m < M; ++m) {
        const Part<B>&upper = rows[m].upper, &lower = rows[m].lower;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          a[m][2 * j] = upper.integers(h, j);
          a[m][2 * j + 1] = lower.integers(h, j);
        }
        scales[m] = {upper.scale[h], lower.scale[h]};
        if constexpr (B == BlockType::q4_k) minima[m] = {upper.min[h], lower.min[h]};
      }
      const std::byte* block = x + h * 32;
      const BlockScale* block_scales = s + h * columns;
      if constexpr (B == BlockType::q6_k) {
        add_halves(a, scales, block, apart, block_scales, sums);
      } else {
        add_block(a, scales, block, apart, block_scales, sums);
      }
      if constexpr (B == BlockType::q4_k) take_minima(minima, block_scales, sums);
    }
  }

  // Q6_K has a scale for 16 values: those of lanes 0, 1 and of lanes 2, 3 of each row, one after the other.
  template <int M, int N>
  static __device__ __forceinline__ void add_halves(const unsigned (&a)[M][4], const RowScales (&own)[M],
                                                    const std::byte* x, int apart, const BlockScale* s,
                                                    float (&sums)[M][N][4]) {
    const bool second_half = threadIdx.x % 4 >= 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const bool mine = second_half == (half == 1);
      unsigned some[M][4];
      RowScales scales[M];
#pragma unroll
      for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) some[m][i] = mine ? a[m][i] : 0;
        const float upper = __shfl_xor_sync(~0u, own[m].upper, 2), lower = __shfl_xor_sync(~0u, own[m].lower, 2);
        scales[m] = {mine ? own[m].upper : upper, mine ? own[m].lower : lower};
      }
      add_block(some, scales, x, apart, s, sums);
    }
  }
};

}  // namespace

std::size_t few_bytes_q8_1(std::int64_t cols) {
  return few_vectors_bytes<Q8_1, BlockType::q8_0>(cols, few_vectors_tile, 2 * most_warps);
}

std::size_t many_bytes_q8_1() { return many_vectors_bytes<Q8_1>(); }

void products_q8_1(Way way, const Matrices& w, const Vectors& v, const Operand& operand, const Device& device,
                   cudaStream_t stream) {
  switch (w.w[0].type) {
    case BlockType::q8_0: return launch_product<Q8_1, BlockType::q8_0>(way, w, v, operand, device, stream);
    case BlockType::q4_k: return launch_product<Q8_1, BlockType::q4_k>(way, w, v, operand, device, stream);
    case BlockType::q6_k: return launch_product<Q8_1, BlockType::q6_k>(way, w, v, operand, device, stream);
    case BlockType::f32:
    case BlockType::f16:
    case BlockType::bf16: return products_f32(way, w, v, device, stream);  // see numerics_for()
    default: return;                                                       // refused: see multiplies()
  }
}

}  // namespace moe_diag::cuda
