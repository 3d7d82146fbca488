// SPDX-License-Identifier: MIT
#pragma once

// Block layouts of GGUF tensors and their scalar decoders, usable from host and device code.
// Source: ggml/src/ggml-common.h (layouts) and ggml/src/ggml-quants.c (dequantize_row_*).

#include <array>
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
enum class BlockType : std::uint32_t {
  f32 = 0,
  f16 = 1,
  q4_0 = 2,
  q4_1 = 3,
  q5_0 = 6,
  q5_1 = 7,
  q8_0 = 8,
  q2_k = 10,
  q3_k = 11,
  q4_k = 12,
  q5_k = 13,
  q6_k = 14,
  iq4_nl = 20,
  iq4_xs = 23,
  bf16 = 30,
  mxfp4 = 39,
};

// A factor of a block, and what it is multiplied with.
struct BlockScale {
  int at = 0;                // byte of the block: an f16
  int most = 0;              // the largest integer, in size
  bool is_exponent = false;  // a byte e instead, which stands for 2^(e - 128)
};

// The factors of a block. The largest |value| of an element is the sum of |factor| * most.
struct BlockScales {
  std::size_t count = 0;  // 0: the element is a float itself
  std::array<BlockScale, 2> scale{};
};

// ---- layouts -------------------------------------------------------------------------------------------------------
// One struct a type, as blocks stand in the file, with a decoder behind them. A further type is an entry of BlockType,
// a struct, a decoder and its place in Blocks.

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

// One value, itself.
struct BlockF32 {
  static constexpr BlockType type = BlockType::f32;
  static constexpr std::string_view name = "F32";
  static constexpr int elements = 1;
  static constexpr BlockScales scales{};
  float value;
};
struct BlockF16 {
  static constexpr BlockType type = BlockType::f16;
  static constexpr std::string_view name = "F16";
  static constexpr int elements = 1;
  static constexpr BlockScales scales{};
  std::uint16_t bits;
};
struct BlockBF16 {
  static constexpr BlockType type = BlockType::bf16;
  static constexpr std::string_view name = "BF16";
  static constexpr int elements = 1;
  static constexpr BlockScales scales{};
  std::uint16_t bits;
};

// d * (q - 8); q is 4 bits, those of the first 16 values in the low halves.
struct BlockQ4_0 {
  static constexpr BlockType type = BlockType::q4_0;
  static constexpr std::string_view name = "Q4_0";
  static constexpr int elements = 32;
  static constexpr BlockScales scales{1, {{{0, 8}}}};
  std::uint16_t d;  // f16
  std::uint8_t q[16];
};
// d * q + m; q as in Q4_0.
struct BlockQ4_1 {
  static constexpr BlockType type = BlockType::q4_1;
  static constexpr std::string_view name = "Q4_1";
  static constexpr int elements = 32;
  static constexpr BlockScales scales{2, {{{0, 15}, {2, 1}}}};
  std::uint16_t d, m;  // f16
  std::uint8_t q[16];
};
// d * (q - 16); the low four bits of q as in Q4_0, the fifth of value i is bit i of high.
struct BlockQ5_0 {
  static constexpr BlockType type = BlockType::q5_0;
  static constexpr std::string_view name = "Q5_0";
  static constexpr int elements = 32;
  static constexpr BlockScales scales{1, {{{0, 16}}}};
  std::uint16_t d;  // f16
  std::uint8_t high[4], q[16];
};
// d * q + m; q as in Q5_0.
struct BlockQ5_1 {
  static constexpr BlockType type = BlockType::q5_1;
  static constexpr std::string_view name = "Q5_1";
  static constexpr int elements = 32;
  static constexpr BlockScales scales{2, {{{0, 31}, {2, 1}}}};
  std::uint16_t d, m;  // f16
  std::uint8_t high[4], q[16];
};
// d * q.
struct BlockQ8_0 {
  static constexpr BlockType type = BlockType::q8_0;
  static constexpr std::string_view name = "Q8_0";
  static constexpr int elements = 32;
  static constexpr BlockScales scales{1, {{{0, 128}}}};
  std::uint16_t d;  // f16
  std::int8_t q[32];
};
// 16 groups of 16: d * scale * q - dmin * min; scale and min are the halves of a byte, q is 2 bits.
struct BlockQ2_K {
  static constexpr BlockType type = BlockType::q2_k;
  static constexpr std::string_view name = "Q2_K";
  static constexpr int elements = 256;
  static constexpr BlockScales scales{2, {{{80, 15 * 3}, {82, 15}}}};
  std::uint8_t groups[16], q[64];
  std::uint16_t d, dmin;  // f16
};
// 16 groups of 16: d * (scale - 32) * (q - 4), where the third bit of q is in high; scales are 6 bits.
struct BlockQ3_K {
  static constexpr BlockType type = BlockType::q3_k;
  static constexpr std::string_view name = "Q3_K";
  static constexpr int elements = 256;
  static constexpr BlockScales scales{1, {{{108, 32 * 4}}}};
  std::uint8_t high[32], q[64], groups[12];
  std::uint16_t d;  // f16
};
// 8 groups of 32: d * scale * q - dmin * min; scales and mins are 6 bits, q is 4 bits.
struct BlockQ4_K {
  static constexpr BlockType type = BlockType::q4_k;
  static constexpr std::string_view name = "Q4_K";
  static constexpr int elements = 256;
  static constexpr BlockScales scales{2, {{{0, 63 * 15}, {2, 63}}}};
  std::uint16_t d, dmin;  // f16
  std::uint8_t groups[12];
  std::uint8_t q[128];
};
// As Q4_K, with a fifth bit of q in high.
struct BlockQ5_K {
  static constexpr BlockType type = BlockType::q5_k;
  static constexpr std::string_view name = "Q5_K";
  static constexpr int elements = 256;
  static constexpr BlockScales scales{2, {{{0, 63 * 31}, {2, 63}}}};
  std::uint16_t d, dmin;  // f16
  std::uint8_t groups[12], high[32], q[128];
};
// 16 groups of 16: d * scale * (q - 32); q is 6 bits, low four in ql, high two in qh.
struct BlockQ6_K {
  static constexpr BlockType type = BlockType::q6_k;
  static constexpr std::string_view name = "Q6_K";
  static constexpr int elements = 256;
  static constexpr BlockScales scales{1, {{{208, 128 * 32}}}};
  std::uint8_t ql[128], qh[64];
  std::int8_t groups[16];
  std::uint16_t d;  // f16
};
// d * level[q]: 16 levels that are not evenly spaced; q as in Q4_0.
struct BlockIQ4_NL {
  static constexpr BlockType type = BlockType::iq4_nl;
  static constexpr std::string_view name = "IQ4_NL";
  static constexpr int elements = 32;
  static constexpr BlockScales scales{1, {{{0, 127}}}};
  std::uint16_t d;  // f16
  std::uint8_t q[16];
};
// 8 groups of 32: d * (scale - 32) * level[q]; scales are 6 bits, low four in low, high two in high.
struct BlockIQ4_XS {
  static constexpr BlockType type = BlockType::iq4_xs;
  static constexpr std::string_view name = "IQ4_XS";
  static constexpr int elements = 256;
  static constexpr BlockScales scales{1, {{{0, 32 * 127}}}};
  std::uint16_t d;  // f16
  std::uint16_t high;
  std::uint8_t low[4], q[128];
};
// 2^(e - 128) * E2M1[q], which here are integers, twice their size; q as in Q4_0.
struct BlockMXFP4 {
  static constexpr BlockType type = BlockType::mxfp4;
  static constexpr std::string_view name = "MXFP4";
  static constexpr int elements = 32;
  static constexpr BlockScales scales{1, {{{0, 12, true}}}};
  std::uint8_t e;
  std::uint8_t q[16];
};

// ---- decoders ------------------------------------------------------------------------------------------------------

// Value i of 32 whose low halves are the first 16.
MOE_DIAG_HD inline int nibble(const std::uint8_t* q, int i) { return q[i % 16] >> (i / 16 * 4) & 0xF; }
MOE_DIAG_HD inline int fifth_bit(const std::uint8_t* high, int i) { return high[i / 8] >> (i % 8) & 1; }

MOE_DIAG_HD inline int iq4_level(int q) {
  constexpr std::int8_t levels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
  return levels[q];
}
MOE_DIAG_HD inline int e2m1_level(int q) {
  constexpr std::int8_t levels[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
  return levels[q];
}

// 2^(e - 128), below 2^-126 as subnormals.
MOE_DIAG_HD inline float float_from_exponent(std::uint8_t e) {
  return float_from_bits(e < 2 ? 0x00200000u << e : static_cast<std::uint32_t>(e - 1) << 23);
}

// Scale of group g (0..15) of a Q3_K block, plus 32.
MOE_DIAG_HD inline int q3_k_scale(const std::uint8_t* s, int g) {
  const int low = g < 8 ? s[g] & 0xF : s[g - 8] >> 4, high = s[8 + g % 4] >> (g / 4 * 2) & 3;
  return low | high << 4;
}

// Value i of a block. T is float (the roundings of ggml: at most one, at the sum or difference) or double (exact).
template <class T>
MOE_DIAG_HD T decode(const BlockF32& b, int) {
  return static_cast<T>(b.value);
}
template <class T>
MOE_DIAG_HD T decode(const BlockF16& b, int) {
  return static_cast<T>(float_from_f16(b.bits));
}
template <class T>
MOE_DIAG_HD T decode(const BlockBF16& b, int) {
  return static_cast<T>(float_from_bf16(b.bits));
}
template <class T>
MOE_DIAG_HD T decode(const BlockQ4_0& b, int i) {
  return static_cast<T>(float_from_f16(b.d)) * static_cast<T>(nibble(b.q, i) - 8);
}
template <class T>
MOE_DIAG_HD T decode(const BlockQ4_1& b, int i) {
  return static_cast<T>(float_from_f16(b.d)) * static_cast<T>(nibble(b.q, i)) + static_cast<T>(float_from_f16(b.m));
}
template <class T>
MOE_DIAG_HD T decode(const BlockQ5_0& b, int i) {
  const int q = nibble(b.q, i) | fifth_bit(b.high, i) << 4;
  return static_cast<T>(float_from_f16(b.d)) * static_cast<T>(q - 16);
}
template <class T>
MOE_DIAG_HD T decode(const BlockQ5_1& b, int i) {
  const int q = nibble(b.q, i) | fifth_bit(b.high, i) << 4;
  return static_cast<T>(float_from_f16(b.d)) * static_cast<T>(q) + static_cast<T>(float_from_f16(b.m));
}
template <class T>
MOE_DIAG_HD T decode(const BlockQ8_0& b, int i) {
  return static_cast<T>(float_from_f16(b.d)) * static_cast<T>(b.q[i]);
}
template <class T>
MOE_DIAG_HD T decode(const BlockQ2_K& b, int i) {
  const std::uint8_t group = b.groups[i / 16];
  const int q = b.q[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
  const T scale = static_cast<T>(float_from_f16(b.d)) * static_cast<T>(group & 0xF);
  const T min = static_cast<T>(float_from_f16(b.dmin)) * static_cast<T>(group >> 4);
  return scale * static_cast<T>(q) - min;
}
template <class T>
MOE_DIAG_HD T decode(const BlockQ3_K& b, int i) {
  const int low = b.q[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3, high = b.high[i % 32] >> (i / 32) & 1;
  const T scale = static_cast<T>(float_from_f16(b.d)) * static_cast<T>(q3_k_scale(b.groups, i / 16) - 32);
  return scale * static_cast<T>((low | high << 2) - 4);
}
template <class T>
MOE_DIAG_HD T decode(const BlockQ4_K& b, int i) {
  const int g = i / 32;
  const ScaleMin sm = q4_k_scale_min(b.groups, g);
  const int q = (b.q[(g / 2) * 32 + i % 32] >> (g % 2 * 4)) & 0xF;
  const T scale = static_cast<T>(float_from_f16(b.d)) * static_cast<T>(sm.scale);
  const T min = static_cast<T>(float_from_f16(b.dmin)) * static_cast<T>(sm.min);
  return scale * static_cast<T>(q) - min;
}
template <class T>
MOE_DIAG_HD T decode(const BlockQ5_K& b, int i) {
  const int g = i / 32;
  const ScaleMin sm = q4_k_scale_min(b.groups, g);
  const int low = (b.q[(g / 2) * 32 + i % 32] >> (g % 2 * 4)) & 0xF, high = b.high[i % 32] >> g & 1;
  const T scale = static_cast<T>(float_from_f16(b.d)) * static_cast<T>(sm.scale);
  const T min = static_cast<T>(float_from_f16(b.dmin)) * static_cast<T>(sm.min);
  return scale * static_cast<T>(low | high << 4) - min;
}
template <class T>
MOE_DIAG_HD T decode(const BlockQ6_K& b, int i) {
  const int half = i / 128, j = i % 128;
  const int low = (b.ql[half * 64 + j % 64] >> (j / 64 * 4)) & 0xF;
  const int high = (b.qh[half * 32 + j % 32] >> (j / 32 * 2)) & 3;
  const T scale = static_cast<T>(float_from_f16(b.d)) * static_cast<T>(b.groups[i / 16]);
  return scale * static_cast<T>((low | high << 4) - 32);
}
template <class T>
MOE_DIAG_HD T decode(const BlockIQ4_NL& b, int i) {
  return static_cast<T>(float_from_f16(b.d)) * static_cast<T>(iq4_level(nibble(b.q, i)));
}
template <class T>
MOE_DIAG_HD T decode(const BlockIQ4_XS& b, int i) {
  const int g = i / 32, low = b.low[g / 2] >> (g % 2 * 4) & 0xF, high = b.high >> (g * 2) & 3;
  const T scale = static_cast<T>(float_from_f16(b.d)) * static_cast<T>((low | high << 4) - 32);
  return scale * static_cast<T>(iq4_level(nibble(b.q + g * 16, i % 32)));
}
template <class T>
MOE_DIAG_HD T decode(const BlockMXFP4& b, int i) {
  return static_cast<T>(float_from_exponent(b.e)) * static_cast<T>(e2m1_level(nibble(b.q, i)));
}

// ---- all of them ---------------------------------------------------------------------------------------------------

template <class... B>
struct BlockList {};
using Blocks = BlockList<BlockF32, BlockF16, BlockBF16, BlockQ4_0, BlockQ4_1, BlockQ5_0, BlockQ5_1, BlockQ8_0,
                         BlockQ2_K, BlockQ3_K, BlockQ4_K, BlockQ5_K, BlockQ6_K, BlockIQ4_NL, BlockIQ4_XS, BlockMXFP4>;

struct BlockInfo {
  BlockType type;
  std::string_view name;  // ggml's spelling, as in file listings
  int elements;           // per block
  int bytes;              // per block
  BlockScales scales;
};

template <class... B>
constexpr std::array<BlockInfo, sizeof...(B)> infos_of(BlockList<B...>) {
  return {BlockInfo{B::type, B::name, B::elements, static_cast<int>(sizeof(B)), B::scales}...};
}
inline constexpr auto block_table = infos_of(Blocks());

// The table row of a type this project reads, or null.
constexpr const BlockInfo* find_block_info(std::uint32_t type) {
  for (const BlockInfo& b : block_table)
    if (static_cast<std::uint32_t>(b.type) == type) return &b;
  return nullptr;
}
constexpr const BlockInfo& info(BlockType type) { return *find_block_info(static_cast<std::uint32_t>(type)); }
constexpr std::string_view name_of(BlockType type) { return info(type).name; }

// Calls f(block) with an empty block of the type.
template <class F, class... B>
void with_block(BlockType type, F f, BlockList<B...>) {
  (void)((type == B::type && (f(B()), true)) || ...);
}
template <class F>
void with_block(BlockType type, F f) {
  with_block(type, f, Blocks());
}

// Element `i` of a row that starts at `row`; the plain definition every faster decoder is tested against.
template <class T, class B, class... Others>
MOE_DIAG_HD T decode(BlockType type, const std::byte* row, std::int64_t i, BlockList<B, Others...>) {
  if constexpr (sizeof...(Others) > 0)
    if (type != B::type) return decode<T>(type, row, i, BlockList<Others...>());
  B block;
  memcpy(&block, row + i / B::elements * static_cast<std::int64_t>(sizeof(B)), sizeof(B));
  return decode<T>(block, static_cast<int>(i % B::elements));
}
template <class T>
MOE_DIAG_HD T decode(BlockType type, const std::byte* row, std::int64_t i) {
  return decode<T>(type, row, i, Blocks());
}

}  // namespace moe_diag
