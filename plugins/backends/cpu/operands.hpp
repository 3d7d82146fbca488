// SPDX-License-Identifier: MIT
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "core/api/blocks.hpp"

// What a product with a weight reads, for numerics that do not take activations as they are.
namespace moe_diag::cpu {

enum class Numerics : std::uint8_t { f64, f32, bf16, q8_k };

// How a product reads activations; `as_they_are` and the two roundings are followed by the arithmetic of f32.
enum class Reading : std::uint8_t { as_they_are, bf16, f16, q8_0, q8_k };

// q8_k pairs the types as llama.cpp's CPU backend does (ggml/src/ggml-cpu/ggml-cpu.c, type_traits_cpu, vec_dot_type).
constexpr Reading reading_of(Numerics numerics, BlockType weight) {
  if (numerics == Numerics::bf16) return Reading::bf16;
  if (numerics != Numerics::q8_k) return Reading::as_they_are;
  switch (weight) {
    case BlockType::f32: return Reading::as_they_are;
    case BlockType::f16: return Reading::f16;
    case BlockType::bf16: return Reading::bf16;
    case BlockType::q8_0: return Reading::q8_0;
    case BlockType::q4_k:
    case BlockType::q6_k: return Reading::q8_k;
    default: return Reading::as_they_are;  // see multiplies()
  }
}

// False for types whose integers q8_k would have to multiply, and does not.
constexpr bool multiplies(Numerics numerics, BlockType weight) {
  return numerics != Numerics::q8_k || weight == BlockType::f32 || reading_of(numerics, weight) != Reading::as_they_are;
}
constexpr bool is_quantised(Reading reading) { return reading >= Reading::q8_0; }

constexpr std::string_view name_of(Reading reading) {
  switch (reading) {
    case Reading::as_they_are: return "f32";
    case Reading::bf16: return "BF16";
    case Reading::f16: return "F16";
    case Reading::q8_0: return "Q8_0";
    case Reading::q8_k: return "Q8_K";
  }
  return "";
}

// The f16 nearest to x, ties to even, as float; beyond 65504 infinite. NaN stays NaN.
inline float nearest_f16(float x) {
  const float size = std::fabs(x);
  if (!(size < 65520.0F)) return size >= 65520.0F ? std::copysign(HUGE_VALF, x) : x;
  if (size < 0x1p-14F) return std::copysign(size + 0.5F - 0.5F, x);  // subnormal: whole steps of 2^-24
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return float_from_bits((bits + 0xFFF + (bits >> 13 & 1)) & ~std::uint32_t{0x1FFF});
}

// A block of N quantised activations: value k is d * q[k], with q in -127..127. Of each four values the middle two
// change places, which is the order in which weights are unpacked fastest.
struct ActivationsQ8_0 {
  static constexpr int elements = 32;
  float d;  // an f16
  std::int16_t q[elements];
};
struct ActivationsQ8_K {
  static constexpr int elements = 256;
  float d;
  std::int16_t sums[8];  // of 32 values each; the middle two of four change places here too
  std::int16_t q[elements];
};

// Weight rows whose values are multiplied at once, as whole numbers, one row beside the other: a block of each.
inline constexpr int rows_at_once = 16;

// 32 values: d * q.
struct alignas(64) RowsQ8_0 {
  std::int16_t q[16][rows_at_once][2];
  float d[rows_at_once];
};
// 256 values: d * q, where q has its group's scale in it.
struct alignas(64) RowsQ6_K {
  std::int16_t q[128][rows_at_once][2];
  float d[rows_at_once];
};
// 256 values: d * q - dmin * min, one min for each 32 values.
struct alignas(64) RowsQ4_K {
  std::int16_t q[128][rows_at_once][2];
  std::int16_t min[4][rows_at_once][2];
  float d[rows_at_once], dmin[rows_at_once];
};

// Bytes of `cols` activations, quantised.
constexpr std::size_t quantised_bytes(Reading reading, std::int64_t cols) {
  if (reading == Reading::q8_0)
    return static_cast<std::size_t>(cols / ActivationsQ8_0::elements) * sizeof(ActivationsQ8_0);
  return static_cast<std::size_t>(cols / ActivationsQ8_K::elements) * sizeof(ActivationsQ8_K);
}

// The arithmetic of bf16 and q8_k, one table of functions per instruction set. The bytes do not depend on which.
struct OperandKernels {
  // y = x rounded, n values; to bf16 or f16, ties to even, NaN kept.
  void (*round)(Reading reading, const float* x, std::int64_t n, float* y);

  // n values to n / 32 ActivationsQ8_0 or n / 256 ActivationsQ8_K. A block that holds a NaN or an infinity becomes NaN.
  void (*quantise)(Reading reading, const float* x, std::int64_t n, std::byte* out);

  // At most 16 rows of a Q8_0, Q4_K or Q6_K weight, `row_bytes` apart, to cols / block RowsQ8_0, RowsQ4_K or RowsQ6_K;
  // rows that are not there become 0. `out` is aligned to 64.
  void (*unpack)(BlockType type, const std::byte* first, std::size_t row_bytes, int rows, std::byte* out);

  // y[i][at + r] = w[r] . x[i] for `rows` unpacked rows and `count` quantised vectors. One rule for the sum: the whole
  // numbers of a block exactly, then blocks in the order of k, a fused multiply-add each (and one for Q4_K's mins).
  void (*products)(BlockType type, const std::byte* w, int rows, const std::byte* const* x, float* const* y, int count,
                   std::int64_t cols, std::int64_t at);
};

}  // namespace moe_diag::cpu
