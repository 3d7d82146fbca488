// SPDX-License-Identifier: MIT
#include "core/gguf/gguf_file.hpp"

#include <random>
#include <string>
#include <vector>

#include "core/api/error.hpp"
#include "core/gguf/gguf_header.hpp"
#include "tests/support/catch.hpp"
#include "tests/unit/gguf/bytes.hpp"

namespace moe_diag {
namespace {

using test::Bytes;

constexpr std::uint32_t f32 = 0, q4_k = 12, u32_type = 4, text_type = 8, array_type = 9;

GgufFile parse(const std::vector<std::byte>& bytes) { return GgufFile::parse(bytes, "m.gguf"); }

// What the file is refused with; the empty text when it is not.
std::string refusal(const std::vector<std::byte>& bytes) {
  try {
    parse(bytes);
  } catch (const Error& e) {
    CHECK(e.kind() == ErrorKind::environment);
    return e.what();
  }
  return {};
}

// A small file with metadata of all kinds and three tensors, the last one ending where the file ends.
std::vector<std::byte> small_file(std::uint32_t version = 3) {
  Bytes b;
  b.preamble(3, 5, version);
  b.text("general.architecture").u32(text_type).text("qwen3moe");
  b.text("a.number").u32(u32_type).u32(7);
  b.text("a.real").u32(6).put(1.5f);
  b.text("a.list").u32(array_type).u32(text_type).u64(2).text("x").text("yz");
  b.text("a.flag").u32(7).put(std::uint8_t{1});
  b.tensor("one", {8}, f32, 0).tensor("two", {256, 2}, q4_k, 32).tensor("three", {4, 2, 3}, f32, 320);
  return b.pad(32).zeros(320 + 96).done();
}

TEST_CASE("a well-formed file is read, versions 2 and 3") {
  for (const std::uint32_t version : {2u, 3u}) {
    const std::vector<std::byte> bytes = small_file(version);
    const GgufFile file = parse(bytes);
    CHECK(file.version() == version);
    CHECK(file.metadata().size() == 5);
    CHECK(file.text("general.architecture") == "qwen3moe");
    CHECK(file.integer("a.number") == 7);
    CHECK(file.real("a.number") == 7.0);
    CHECK(file.real("a.real") == 1.5);
    CHECK(file.boolean("a.flag") == true);
    CHECK_FALSE(file.integer("absent").has_value());
    CHECK(file.find("a.list")->count == 2);
    REQUIRE(file.tensors().size() == 3);
    const GgufTensor& two = *file.find_tensor("two");
    CHECK(two.type == BlockType::q4_k);
    CHECK(two.dims == std::array<std::int64_t, 4>{256, 2, 1, 1});
    CHECK(two.bytes == 288);
    CHECK(two.offset % 32 == 0);
    CHECK(file.find_tensor("three")->offset + 96 == bytes.size());
  }
}

TEST_CASE("a value of another type is refused with its key") {
  const std::vector<std::byte> bytes = small_file();
  const GgufFile file = parse(bytes);
  CHECK_THROWS_WITH(file.integer("a.real"), "m.gguf: metadata key 'a.real' is of type f32, expected an integer");
  CHECK_THROWS_WITH(file.real("a.list"), "m.gguf: metadata key 'a.list' is of type array, expected a number");
  CHECK_THROWS_WITH(file.text("a.number"), "m.gguf: metadata key 'a.number' is of type u32, expected text");
  CHECK_THROWS_WITH(file.boolean("a.number"), "m.gguf: metadata key 'a.number' is of type u32, expected boolean");
}

TEST_CASE("every prefix of a file is refused with a message") {
  const std::vector<std::byte> bytes = small_file();
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    // A copy of its own, so that a read beyond the prefix is a read beyond the allocation.
    const std::vector<std::byte> prefix(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(size));
    INFO("first " << size << " of " << bytes.size() << " bytes");
    CHECK(refusal(prefix).substr(0, 8) == "m.gguf: ");
  }
}

TEST_CASE("files with random bytes in them are read or refused, never more") {
  const std::vector<std::byte> bytes = small_file();
  std::mt19937 random(7);
  int refused = 0;
  for (int round = 0; round < 20000; ++round) {
    std::vector<std::byte> broken = bytes;
    for (unsigned flips = 1 + random() % 4; flips > 0; --flips)
      broken[random() % broken.size()] = static_cast<std::byte>(random());
    refused += refusal(broken).empty() ? 0 : 1;
  }
  CHECK(refused > 1000);
}

TEST_CASE("each thing wrong with a header has its message") {
  const std::string incomplete = "a download may be incomplete: compare the file's size with that at its source";
  const auto wrong = [](const Bytes& bytes) { return refusal(bytes.done()); };
  CHECK(wrong(Bytes().raw("GGML").zeros(60)) ==
        "m.gguf: not a GGUF file: it starts with the bytes 47 47 4d 4c, expected 47 47 55 46 (\"GGUF\")");
  CHECK(wrong(Bytes().preamble(0, 0, 1)) ==
        "m.gguf: GGUF version 1, supported are 2 and 3; convert the model again with a current converter");
  CHECK(wrong(Bytes().preamble(0, 0, 4)) == "m.gguf: GGUF version 4, supported are 2 and 3");
  CHECK(wrong(Bytes().preamble(0, 0, 0x03000000)) ==
        "m.gguf: a big-endian GGUF file; convert it with gguf-convert-endian of the gguf package");
  CHECK(wrong(Bytes().preamble(0, std::uint64_t{1} << 60).zeros(26)) ==
        "m.gguf: the header announces 1152921504606846976 metadata entries, the 26 bytes that follow hold 2 at most; " +
            incomplete);
  CHECK(wrong(Bytes().preamble(std::uint64_t{1} << 60, 0).zeros(64)) ==
        "m.gguf: the header announces 1152921504606846976 tensors, the 64 bytes that follow hold 2 at most; " +
            incomplete);
}

TEST_CASE("each thing wrong with metadata has its message") {
  const auto wrong = [](const Bytes& entries, std::uint64_t count = 1) {
    const std::vector<std::byte> raw = entries.done();
    const std::string text(reinterpret_cast<const char*>(raw.data()), raw.size());
    return refusal(Bytes().preamble(0, count).raw(text).zeros(16).done());
  };
  const std::uint64_t huge = ~std::uint64_t{0};
  CHECK_THAT(wrong(Bytes().u64(huge)), Catch::Matchers::Contains("the file ends too early: the key of metadata entry"));
  CHECK_THAT(wrong(Bytes().text("k").u32(text_type).u64(huge)),
             Catch::Matchers::Contains("the text of metadata key 'k' takes 18446744073709551615 bytes"));
  CHECK(wrong(Bytes().text("k").u32(13)) == "m.gguf: metadata key 'k' has value type 13, expected 0 to 12");
  CHECK(wrong(Bytes().text("k").u32(array_type).u32(array_type).u64(1)) ==
        "m.gguf: metadata key 'k' is an array of arrays, expected an array of plain values");
  CHECK(wrong(Bytes().text("k").u32(array_type).u32(77).u64(1)) ==
        "m.gguf: metadata key 'k' has value type 77, expected 0 to 12");
  CHECK(wrong(Bytes().text("k").u32(array_type).u32(u32_type).u64(huge)) ==
        "m.gguf: metadata key 'k' announces 18446744073709551615 elements, the 16 bytes that follow hold 4 at most");
  CHECK_THAT(wrong(Bytes().text("k").u32(array_type).u32(text_type).u64(1).u64(huge)),
             Catch::Matchers::Contains("within text 1 of 1 of metadata key 'k'"));
  CHECK(wrong(Bytes().text("").u32(u32_type).u32(1)) == "m.gguf: metadata entry 1 of 1 has an empty key");
  CHECK(wrong(Bytes().text("k").u32(u32_type).u32(1).text("k").u32(u32_type).u32(2), 2) ==
        "m.gguf: metadata key 'k' stands in entries 1 and 2, expected once");
  CHECK(wrong(Bytes().text("general.alignment").u32(u32_type).u32(48)) ==
        "m.gguf: general.alignment is 48, expected a power of two");
  CHECK(wrong(Bytes().text("general.alignment").u32(u32_type).u32(0)) ==
        "m.gguf: general.alignment is 0, expected a power of two");
  CHECK(wrong(Bytes().text("general.alignment").u32(text_type).text("32")) ==
        "m.gguf: metadata key 'general.alignment' is of type text, expected u32");
  CHECK(wrong(Bytes().text("a\n\x80").u32(13)) ==
        "m.gguf: metadata key 'a\\x0a\\x80' has value type 13, expected 0 to 12");
}

TEST_CASE("each thing wrong with the tensor table has its message") {
  const auto wrong = [](const Bytes& table, std::uint64_t count = 1) {
    const std::vector<std::byte> raw = table.done();
    const std::string text(reinterpret_cast<const char*>(raw.data()), raw.size());
    return refusal(Bytes().preamble(count, 0).raw(text).pad(32).zeros(256).done());
  };
  CHECK(wrong(Bytes().tensor("t", {8}, f32, 0)) == "");
  CHECK(wrong(Bytes().tensor("t", {}, f32, 0)) == "m.gguf: tensor 't' has 0 dimensions, expected 1 to 4");
  CHECK(wrong(Bytes().tensor("t", {1, 1, 1, 1, 1}, f32, 0)) == "m.gguf: tensor 't' has 5 dimensions, expected 1 to 4");
  CHECK(wrong(Bytes().tensor("t", {4, 0}, f32, 0)) ==
        "m.gguf: tensor 't' has size 0 in dimension 1, expected at least 1");
  CHECK(wrong(Bytes().tensor("t", {std::uint64_t{1} << 40, std::uint64_t{1} << 40}, f32, 0)) ==
        "m.gguf: tensor 't' has dimensions whose product does not fit in 63 bits");
  CHECK(wrong(Bytes().tensor("t", {std::uint64_t{1} << 62}, f32, 0)) ==
        "m.gguf: tensor 't' has a size in bytes that does not fit in 63 bits");
  CHECK(wrong(Bytes().tensor("t", {100, 2}, q4_k, 0)) ==
        "m.gguf: tensor 't' is of type Q4_K with 100 values a row, expected a multiple of the block of 256");
  CHECK_THAT(wrong(Bytes().tensor("t", {256}, 16, 0)),
             Catch::Matchers::StartsWith(
                 "m.gguf: tensor 't' is of type IQ2_XXS, which is not supported; supported: F32, F16, BF16, "));
  CHECK_THAT(
      wrong(Bytes().tensor("t", {256}, 99, 0)),
      Catch::Matchers::StartsWith(
          "m.gguf: tensor 't' has the type id 99, which this version of moe-diag does not know: it may be a newer "
          "type; supported: F32, F16, BF16, "));
  CHECK(wrong(Bytes().tensor("t", {8}, f32, 20)) ==
        "m.gguf: tensor 't' starts at offset 20 of the data, expected a multiple of the alignment 32");
  CHECK(wrong(Bytes().tensor("t", {72}, f32, 0)) ==
        "m.gguf: tensor 't' lies outside the file: 288 bytes at byte 64+0, found 320 bytes in all; a download may be "
        "incomplete: compare the file's size with that at its source");
  CHECK_THAT(wrong(Bytes().tensor("t", {8}, f32, ~std::uint64_t{31})),
             Catch::Matchers::Contains("tensor 't' lies outside the file"));
  CHECK(wrong(Bytes().tensor("t", {8}, f32, 0).tensor("t", {8}, f32, 32), 2) ==
        "m.gguf: tensor 't' stands in rows 1 and 2 of the table, expected once");
  CHECK(wrong(Bytes().tensor("t", {16}, f32, 0).tensor("u", {8}, f32, 32), 2) ==
        "m.gguf: tensors 't' (bytes 96 to 159) and 'u' (bytes 128 to 159) overlap");
}

TEST_CASE("what the header builder makes is read back") {
  GgufHeader header;
  header.add("k.text", "value");
  header.add("k.flag", true);
  header.add("k.large", std::uint64_t{1} << 40);
  header.add_tensor("odd", BlockType::f16, {3, 3});
  header.add_tensor("next", BlockType::q8_0, {64, 2, 5});
  std::vector<std::byte> bytes = header.bytes();
  const std::size_t start = bytes.size();
  bytes.resize(start + header.data_bytes());
  const GgufFile file = parse(bytes);
  CHECK(file.text("k.text") == "value");
  CHECK(file.boolean("k.flag") == true);
  CHECK(file.integer("k.large") == std::int64_t{1} << 40);
  CHECK(file.find_tensor("odd")->offset == start);
  CHECK(file.find_tensor("next")->offset == start + 32);
  CHECK(file.find_tensor("next")->dims == std::array<std::int64_t, 4>{64, 2, 5, 1});
}

}  // namespace
}  // namespace moe_diag
