// SPDX-License-Identifier: MIT
#pragma once

// Block layouts of GGUF tensors and their scalar decoders, usable from host and device code.
// Source: ggml/src/ggml-common.h (layouts) and ggml/src/ggml-quants.c (dequantize_row_*).

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#if defined(__CUDACC__)
#define MOE_DIAG_HD __host__ __device__
#else
#define MOE_DIAG_HD
#endif

namespace moe_diag {

// Numbers are ggml's own type ids, as they stand in the file.
enum class BlockType : std::uint32_t { f32 = 0, f16 = 1, q8_0 = 8, q4_k = 12, q6_k = 14, bf16 = 30 };

struct BlockInfo {
  BlockType type;
  std::string_view name;  // ggml's spelling, as in file listings
  int elements;           // per block
  int bytes;              // per block
};

inline constexpr BlockInfo block_table[] = {
    {BlockType::f32, "F32", 1, 4},     {BlockType::f16, "F16", 1, 2},       {BlockType::bf16, "BF16", 1, 2},
    {BlockType::q8_0, "Q8_0", 32, 34}, {BlockType::q4_k, "Q4_K", 256, 144}, {BlockType::q6_k, "Q6_K", 256, 210},
};

// The table row of a type this project reads, or null.
constexpr const BlockInfo* find_block_info(std::uint32_t type) {
  for (const BlockInfo& b : block_table)
    if (static_cast<std::uint32_t>(b.type) == type) return &b;
  return nullptr;
}
constexpr const BlockInfo& info(BlockType type) { return *find_block_info(static_cast<std::uint32_t>(type)); }
constexpr std::string_view name_of(BlockType type) { return info(type).name; }

// 32 values: d * q.
struct BlockQ8_0 {
  std::uint16_t d;  // f16
  std::int8_t q[32];
};
// 256 values in 8 groups of 32: d * scale * q - dmin * min; scales and mins are 6 bits, q is 4 bits.
struct BlockQ4_K {
  std::uint16_t d, dmin;  // f16
  std::uint8_t scales[12];
  std::uint8_t q[128];
};
// 256 values in 16 groups of 16: d * scale * (q - 32); q is 6 bits, low four in ql, high two in qh.
struct BlockQ6_K {
  std::uint8_t ql[128], qh[64];
  std::int8_t scales[16];
  std::uint16_t d;  // f16
};
static_assert(sizeof(BlockQ8_0) == 34 && sizeof(BlockQ4_K) == 144 && sizeof(BlockQ6_K) == 210);

MOE_DIAG_HD inline float float_from_bits(std::uint32_t bits) {
  float f;
  memcpy(&f, &bits, sizeof f);
  return f;
}

MOE_DIAG_HD inline float float_from_bf16(std::uint16_t h) { return float_from_bits(std::uint32_t{h} << 16); }

// Exact for every pattern, subnormals, infinities and NaN payloads included.
MOE_DIAG_HD inline float float_from_f16(std::uint16_t h) {
  const std::uint32_t sign = (h & 0x8000u) << 16, exponent = (h >> 10) & 31u, mantissa = h & 0x3FFu;
  if (exponent == 31) return float_from_bits(sign | 0x7F800000u | mantissa << 13);
  if (exponent != 0) return float_from_bits(sign | (exponent + 112) << 23 | mantissa << 13);
  const float magnitude = static_cast<float>(mantissa) * 5.9604644775390625e-8f;  // 2^-24
  return sign ? -magnitude : magnitude;
}

// Scale and minimum of group g (0..7), unpacked from the 12 bytes of a Q4_K block.
struct ScaleMin {
  std::uint8_t scale, min;
};
MOE_DIAG_HD inline ScaleMin q4_k_scale_min(const std::uint8_t* s, int g) {
  if (g < 4) return {static_cast<std::uint8_t>(s[g] & 63), static_cast<std::uint8_t>(s[g + 4] & 63)};
  return {static_cast<std::uint8_t>((s[g + 4] & 0xF) | (s[g - 4] >> 6) << 4),
          static_cast<std::uint8_t>((s[g + 4] >> 4) | (s[g] >> 6) << 4)};
}

// Value i of a block. T is float (the rounding of ggml: one, at the subtraction of Q4_K) or double (exact).
template <class T>
MOE_DIAG_HD T decode(const BlockQ8_0& b, int i) {
  return static_cast<T>(float_from_f16(b.d)) * static_cast<T>(b.q[i]);
}
template <class T>
MOE_DIAG_HD T decode(const BlockQ4_K& b, int i) {
  const int g = i / 32;
  const ScaleMin sm = q4_k_scale_min(b.scales, g);
  const int q = (b.q[(g / 2) * 32 + i % 32] >> (g % 2 * 4)) & 0xF;
  const T scale = static_cast<T>(float_from_f16(b.d)) * static_cast<T>(sm.scale);
  const T min = static_cast<T>(float_from_f16(b.dmin)) * static_cast<T>(sm.min);
  return scale * static_cast<T>(q) - min;
}
template <class T>
MOE_DIAG_HD T decode(const BlockQ6_K& b, int i) {
  const int half = i / 128, j = i % 128;
  const int low = (b.ql[half * 64 + j % 64] >> (j / 64 * 4)) & 0xF;
  const int high = (b.qh[half * 32 + j % 32] >> (j / 32 * 2)) & 3;
  const T scale = static_cast<T>(float_from_f16(b.d)) * static_cast<T>(b.scales[i / 16]);
  return scale * static_cast<T>((low | high << 4) - 32);
}

// Element `i` of a row that starts at `row`; the plain definition every faster decoder is tested against.
template <class T>
MOE_DIAG_HD T decode(BlockType type, const std::byte* row, std::int64_t i) {
  const auto load = [row]<class B>(std::int64_t block) {
    B b;
    memcpy(&b, row + block * static_cast<std::int64_t>(sizeof(B)), sizeof(B));
    return b;
  };
  switch (type) {
    case BlockType::f32: return static_cast<T>(load.template operator()<float>(i));
    case BlockType::f16: return static_cast<T>(float_from_f16(load.template operator()<std::uint16_t>(i)));
    case BlockType::bf16: return static_cast<T>(float_from_bf16(load.template operator()<std::uint16_t>(i)));
    case BlockType::q8_0: return decode<T>(load.template operator()<BlockQ8_0>(i / 32), static_cast<int>(i % 32));
    case BlockType::q4_k: return decode<T>(load.template operator()<BlockQ4_K>(i / 256), static_cast<int>(i % 256));
    case BlockType::q6_k: return decode<T>(load.template operator()<BlockQ6_K>(i / 256), static_cast<int>(i % 256));
  }
  return T{};
}

}  // namespace moe_diag
