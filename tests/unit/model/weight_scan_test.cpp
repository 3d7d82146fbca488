// SPDX-License-Identifier: MIT
#include "core/model/weight_scan.hpp"

#include <cstring>
#include <string>
#include <vector>

#include "tests/support/bent_model.hpp"
#include "tests/support/catch.hpp"

namespace moe_diag {
namespace {

constexpr int experts = 3;
constexpr std::int64_t blocks_of_row = 2;

// A weight in memory whose blocks are sound: all bytes are 1, all scales and values small and not zero.
struct Sample {
  std::vector<std::byte> bytes;
  Weight weight;

  Sample(BlockType type, std::int64_t rows, std::int64_t experts_of_it = experts) {
    weight.name = "blk.0.ffn_up_exps.weight";
    weight.type = type;
    weight.cols = info(type).elements * blocks_of_row;
    weight.rows = rows;
    weight.experts = experts_of_it;
    bytes.assign(weight.bytes(), std::byte{1});
    weight.data = bytes.data();
  }
  std::byte* block(int expert, std::int64_t row, std::int64_t index) {
    return bytes.data() + (weight.row(expert, row) - weight.data) + index * info(weight.type).bytes;
  }
  std::vector<UnsoundBlocks> scan() const {
    const Weight* list[] = {&weight};
    return scan_weights(list);
  }
};

void put_f16(std::byte* at, std::uint16_t bits) { std::memcpy(at, &bits, sizeof bits); }

}  // namespace

TEST_CASE("blocks that are sound are not listed, of any type") {
  for (const BlockInfo& block : block_table) {
    INFO(block.name);
    CHECK(Sample(block.type, 7).scan().empty());
  }
  Weight without_data;
  without_data.cols = 256;
  const Weight* list[] = {&without_data};
  CHECK(scan_weights(list).empty());
}

TEST_CASE("NaN and Inf are found in every type, in the block and the expert that has them") {
  for (const BlockInfo& block : block_table)
    for (const Bad bad : {Bad::nan, Bad::inf, Bad::minus_inf}) {
      if (block.scales.scale[0].is_exponent) continue;  // such blocks hold neither
      INFO(block.name << ", kind " << static_cast<int>(bad));
      Sample sample(block.type, 7);
      bend(sample.block(1, 4, 1), block.type, bad);
      bend(sample.block(1, 6, 0), block.type, bad);
      const std::vector<UnsoundBlocks> found = sample.scan();
      REQUIRE(found.size() == 1);
      const UnsoundBlocks& u = found[0];
      CHECK(u.tensor == "blk.0.ffn_up_exps.weight");
      CHECK(u.type == block.type);
      CHECK(u.expert == 1);
      CHECK(u.blocks == 7 * blocks_of_row);
      CHECK((bad == Bad::nan ? u.nan : u.inf) == 2);
      CHECK(u.nan + u.inf == 2);
      CHECK(u.beyond == 0);
      CHECK(u.zero == 0);
      CHECK(u.first == 4 * blocks_of_row + 1);
      CHECK(u.row == 4);
      CHECK(u.column == block.elements);
      CHECK(u.columns == block.elements);
      const std::string kind = bad == Bad::nan ? "NaN" : "Inf";
      const std::string said =
          block.elements == 1 ? "2 of 14 values are " + kind + ", the first at row 4, column 1"
                              : "2 of 14 blocks hold " + kind + ", the first is block 9: row 4, columns " +
                                    std::to_string(block.elements) + " to " + std::to_string(2 * block.elements - 1);
      CHECK(text_of(u) == said);
    }
}

TEST_CASE("each scale of a block counts, and a block counts once") {
  Sample sample(BlockType::q4_k, 2, 1);
  put_f16(sample.block(0, 0, 0), 0x7C00);      // d is Inf
  put_f16(sample.block(0, 0, 0) + 2, 0xFE00);  // and dmin NaN
  put_f16(sample.block(0, 1, 0), 0x7E00);      // d alone
  const std::vector<UnsoundBlocks> found = sample.scan();
  REQUIRE(found.size() == 1);
  CHECK(found[0].expert == -1);
  CHECK(found[0].nan == 2);
  CHECK(found[0].inf == 0);
}

TEST_CASE("values beyond the largest F16 are told from large ones") {
  const auto found = [](BlockType type, auto change) {
    Sample sample(type, 3, 1);
    change(sample.block(0, 1, 0));
    const std::vector<UnsoundBlocks> list = sample.scan();
    return list.empty() ? std::int64_t{0} : list[0].beyond;
  };
  const auto f32 = [](float value) { return [value](std::byte* at) { std::memcpy(at, &value, sizeof value); }; };
  CHECK(found(BlockType::f32, f32(65504)) == 0);
  CHECK(found(BlockType::f32, f32(-65505)) == 1);
  CHECK(found(BlockType::f32, f32(3e38F)) == 1);
  const auto bf16 = [](std::uint16_t bits) { return [bits](std::byte* at) { put_f16(at, bits); }; };
  CHECK(found(BlockType::bf16, bf16(0x477F)) == 0);  // 65280
  CHECK(found(BlockType::bf16, bf16(0xC780)) == 1);  // -65536
  CHECK(found(BlockType::f16, bf16(0x7BFF)) == 0);   // 65504
  // What counts is the largest value, not the scale: 1 * 600 is none, 127 * 600 is one.
  const auto q8_0 = [](std::int8_t q) {
    return [q](std::byte* at) {
      put_f16(at, 0x60B0);  // 600
      std::memset(at + 2, q, 32);
    };
  };
  CHECK(found(BlockType::q8_0, q8_0(1)) == 0);
  CHECK(found(BlockType::q8_0, q8_0(127)) == 1);
  CHECK(found(BlockType::q8_0, q8_0(-128)) == 1);
}

TEST_CASE("an expert or a tensor of zeros is listed, one with some zeros is not") {
  for (const BlockInfo& block : block_table) {
    INFO(block.name);
    Sample sample(block.type, 4);
    std::memset(sample.block(2, 0, 0), 0, sample.weight.expert_bytes());
    std::memset(sample.block(0, 1, 0), 0, sample.weight.row_bytes());
    const std::vector<UnsoundBlocks> found = sample.scan();
    REQUIRE(found.size() == 1);
    CHECK(found[0].expert == 2);
    CHECK(found[0].is_all_zero());
    CHECK(found[0].first == -1);
    CHECK_THAT(text_of(found[0]), Catch::Matchers::Contains("all 8 ") && Catch::Matchers::Contains(" are zero"));
  }
}

TEST_CASE("experts of more than one chunk are counted whole, and progress ends with all of it") {
  const BlockType type = BlockType::q6_k;
  Sample sample(type, 15'000);  // 6 MB an expert
  for (const std::int64_t row : {14'999, 2, 9'000}) bend(sample.block(2, row, 0), type, Bad::nan);
  bend(sample.block(0, 14'000, 1), type, Bad::inf);
  std::uint64_t last = 0, all = 0;
  const Weight* list[] = {&sample.weight};
  const std::vector<UnsoundBlocks> found = scan_weights(list, [&](std::uint64_t done, std::uint64_t total) {
    CHECK(done > last);
    last = done;
    all = total;
  });
  CHECK(last == sample.weight.bytes());
  CHECK(all == sample.weight.bytes());
  REQUIRE(found.size() == 2);
  CHECK(found[0].expert == 0);
  CHECK(found[0].inf == 1);
  CHECK(found[0].row == 14'000);
  CHECK(found[1].expert == 2);
  CHECK(found[1].nan == 3);
  CHECK(found[1].row == 2);
  CHECK_THROWS_AS(scan_weights(list, [](std::uint64_t, std::uint64_t) { throw 1; }), int);
}

}  // namespace moe_diag
