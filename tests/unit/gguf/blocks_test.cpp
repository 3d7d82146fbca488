// SPDX-License-Identifier: MIT
#include "core/api/blocks.hpp"

#include <bit>
#include <cmath>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "tests/support/catch.hpp"

namespace moe_diag {
namespace {

std::vector<char> read_golden(const std::string& name) {
  const std::string path = MOE_DIAG_SOURCE_DIR "/tests/golden/dequant/" + name;
  std::ifstream file(path, std::ios::binary);
  INFO(path);
  REQUIRE(file);
  return {std::istreambuf_iterator<char>(file), {}};
}

// NaN compares as NaN, everything else by its bits.
bool same(float a, float b) {
  return std::isnan(a) ? std::isnan(b) : std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b);
}
bool same(double a, double b) {
  return std::isnan(a) ? std::isnan(b) : std::bit_cast<std::uint64_t>(a) == std::bit_cast<std::uint64_t>(b);
}

TEST_CASE("blocks of random and extreme bytes decode to the gguf package's bits") {
  for (const BlockInfo& block : block_table) {
    if (block.type == BlockType::f32) continue;  // nothing to decode
    const std::string name(block.name);
    INFO(name);
    const std::vector<char> raw = read_golden(name + ".blocks.bin"), values = read_golden(name + ".f32.bin");
    const auto blocks = static_cast<std::int64_t>(raw.size()) / block.bytes;
    REQUIRE(blocks > 30);
    REQUIRE(values.size() == static_cast<std::size_t>(blocks * block.elements) * sizeof(float));
    const auto* row = reinterpret_cast<const std::byte*>(raw.data());
    std::int64_t wrong = 0, wrong_rounded = 0, inexact = 0;
    for (std::int64_t i = 0; i < blocks * block.elements; ++i) {
      float expected;
      std::memcpy(&expected, values.data() + static_cast<std::size_t>(i) * sizeof expected, sizeof expected);
      const auto exact = decode<double>(block.type, row, i);
      wrong += !same(decode<float>(block.type, row, i), expected);
      wrong_rounded += !same(static_cast<float>(exact), expected);
      inexact += std::isfinite(expected) && !same(exact, static_cast<double>(expected));
    }
    CHECK(wrong == 0);
    CHECK(wrong_rounded == 0);  // the double is within half an ulp of the float
    if (block.scales.count == 2)
      CHECK(inexact > 0);  // the float was rounded at the sum or difference, the double was not
    else
      CHECK(inexact == 0);
  }
}

TEST_CASE("a row of several blocks is decoded across their edges") {
  std::vector<BlockQ8_0> row(3);
  for (int b = 0; b < 3; ++b) {
    row[static_cast<std::size_t>(b)].d = static_cast<std::uint16_t>(0x3C00 + 0x400 * b);  // 1, 2, 4
    for (int i = 0; i < 32; ++i) row[static_cast<std::size_t>(b)].q[i] = static_cast<std::int8_t>(i - 16);
  }
  const auto* bytes = reinterpret_cast<const std::byte*>(row.data());
  CHECK(decode<float>(BlockType::q8_0, bytes, 31) == 15);
  CHECK(decode<float>(BlockType::q8_0, bytes, 32) == -32);
  CHECK(decode<float>(BlockType::q8_0, bytes, 95) == 60);
}

}  // namespace
}  // namespace moe_diag
