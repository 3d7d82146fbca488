// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <string>

#include "core/api/blocks.hpp"
#include "core/model/model.hpp"
#include "core/model/synthetic.hpp"

namespace moe_diag {

// What a quantiser or a converter may leave in a file.
enum class Bad { nan, inf, minus_inf };

inline std::uint32_t f32_bits(Bad bad) {
  return bad == Bad::nan ? 0x7FC00000 : bad == Bad::inf ? 0x7F800000 : 0xFF800000;
}
inline std::uint16_t f16_bits(Bad bad) { return bad == Bad::nan ? 0x7E00 : bad == Bad::inf ? 0x7C00 : 0xFC00; }

// A place among a tensor's blocks; of float types each value is a block.
struct BlockPlace {
  std::string tensor;
  int expert = 0;
  std::int64_t row = 0, block = 0;
};

// Puts it into the block's last scale, or in place of the value.
inline void bend(std::byte* block, BlockType type, Bad bad) {
  const std::uint32_t f32 = f32_bits(bad);
  const auto bf16 = static_cast<std::uint16_t>(f32 >> 16);
  const std::uint16_t f16 = f16_bits(bad);
  const BlockScales& scales = info(type).scales;
  if (scales.count > 0)
    std::memcpy(block + scales.scale[scales.count - 1].at, &f16, sizeof f16);
  else if (type == BlockType::f32)
    std::memcpy(block, &f32, sizeof f32);
  else
    std::memcpy(block, type == BlockType::bf16 ? &bf16 : &f16, sizeof f16);
}

// The same in a model file.
inline void bend(const std::string& path, const BlockPlace& place, Bad bad) {
  const Model model = Model::open(path);
  for (const Weight& weight : model.view().weights) {
    if (weight.name != place.tensor) continue;
    const std::byte* row = weight.row(place.expert, place.row);
    const auto bytes = static_cast<std::size_t>(info(weight.type).bytes);
    const auto at =
        static_cast<std::streamoff>(model.place_of(weight).offset + static_cast<std::uint64_t>(row - weight.data) +
                                    static_cast<std::uint64_t>(place.block) * bytes);
    std::byte block[256];
    std::memcpy(block, row + static_cast<std::size_t>(place.block) * bytes, bytes);
    bend(block, weight.type, bad);
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(at);
    file.write(reinterpret_cast<const char*>(block), static_cast<std::streamsize>(bytes));
    return;
  }
  throw std::runtime_error("no tensor " + place.tensor);
}

}  // namespace moe_diag
