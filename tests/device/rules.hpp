// SPDX-License-Identifier: MIT
#pragma once

// What the numerics of the cuda lanes do to the operands of a product, written plainly: the product itself is then
// made in double.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "core/api/blocks.hpp"

namespace moe_diag::test {

// To nearest, ties to even.
inline double round_to_bf16(float value) {
  if (std::isnan(value)) return value;
  std::uint32_t bits = 0;
  std::memcpy(&bits, &value, sizeof bits);
  bits += 0x7FFF + (bits >> 16 & 1);
  return float_from_bf16(static_cast<std::uint16_t>(bits >> 16));
}

// Blocks of 32: scale = largest magnitude / 127 in f32, each value a whole number of scales.
inline void quantise_q8_1(const float* x, std::int64_t count, double* to) {
  for (std::int64_t begin = 0; begin < count; begin += 32) {
    const std::int64_t end = std::min(count, begin + 32);
    float most = 0;
    bool finite = true;
    for (std::int64_t i = begin; i < end; ++i) {
      finite = finite && std::isfinite(x[i]);
      most = std::max(most, std::fabs(x[i]));
    }
    const float scale = most / 127.0f;
    for (std::int64_t i = begin; i < end; ++i)
      to[i] = !finite     ? std::numeric_limits<double>::quiet_NaN()
              : scale > 0 ? static_cast<double>(scale) * std::nearbyint(x[i] / scale)
                          : 0.0;
  }
}

// Whether numerics quantise the vectors of products with weights of this type.
inline bool quantises(const std::string& numerics, BlockType type) {
  return numerics == "q8_1" && (type == BlockType::q8_0 || type == BlockType::q4_k || type == BlockType::q6_k);
}

// The vector as a product with weights of the type reads it.
inline std::vector<double> read_vector(const std::string& numerics, BlockType type, const float* x,
                                       std::int64_t count) {
  std::vector<double> read(x, x + count);
  if (quantises(numerics, type)) quantise_q8_1(x, count, read.data());
  if (numerics == "bf16")
    for (std::int64_t i = 0; i < count; ++i) read[static_cast<std::size_t>(i)] = round_to_bf16(x[i]);
  return read;
}

// A weight as a product reads it.
inline double read_weight(const std::string& numerics, BlockType type, const std::byte* row, std::int64_t k) {
  return numerics == "bf16" ? round_to_bf16(decode<float>(type, row, k)) : decode<double>(type, row, k);
}

}  // namespace moe_diag::test
