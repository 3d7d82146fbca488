// SPDX-License-Identifier: MIT
#include <cstring>
#include <string>
#include <vector>

#include "core/api/error.hpp"
#include "core/file/safetensors_file.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/process.hpp"
#include "tests/support/temporary_folder.hpp"

namespace moe_diag {
namespace {

std::string golden(const std::string& name) {
  return read_text(std::string(MOE_DIAG_SOURCE_DIR) + "/tests/golden/safetensors/" + name);
}

// The bytes of a file with that header, and so many bytes of data.
std::string file_of(const std::string& header, std::size_t data = 0) {
  const std::uint64_t length = header.size();
  std::string bytes(sizeof length, '\0');
  std::memcpy(bytes.data(), &length, sizeof length);
  return bytes + header + std::string(data, '\1');
}

// Why the file is refused; empty: it is read.
std::string refusal(const std::string& bytes) {
  // On the heap at its exact size, so that a sanitizer sees a read behind its end.
  const std::vector<char> exact(bytes.begin(), bytes.end());
  try {
    parse_safetensors({exact.data(), exact.size()});
  } catch (const Error& e) {
    CHECK(e.kind() == ErrorKind::usage);
    return e.what();
  }
  return "";
}

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return "\"" + name + R"(":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
}

std::vector<double> values_of(const StoredTensor& t) {
  std::vector<double> values;
  for (std::int64_t i = 0; i < t.shape.count(); ++i) values.push_back(t.tensor().value(i));
  return values;
}

}  // namespace

TEST_CASE("what the safetensors package writes is read") {
  const std::string bytes = golden("values.safetensors"), small = golden("bf16.safetensors");
  const SafetensorsFile file = parse_safetensors(bytes);
  CHECK(file.tensors.size() == 7);
  CHECK(file.metadata.at("made by") == "make_safetensors.py");
  const std::vector<double> expected{0, 1.5, -2.25, 3, -0.125, 65504};
  for (const std::string name : {"f64", "f32", "f16"}) {
    REQUIRE(file.find(name));
    CHECK(values_of(stored(*file.find(name))) == expected);
    CHECK(stored(*file.find(name)).shape == Shape{2, 3});
  }
  CHECK(values_of(stored(*file.find("i32"))) == std::vector<double>{0, 7, -1, 2, 3, 2147483647});
  CHECK(file.find("u8")->data == std::string_view("\0\1\2\3\4", 5));
  CHECK(file.find("empty")->shape == std::vector<std::int64_t>{0, 4});
  CHECK(file.find("nowhere") == nullptr);
  CHECK_THROWS_WITH(stored(*file.find("i64")),
                    "tensor 'i64': expected one of the types F64, F32, F16, BF16, I32, found I64");
  const StoredTensor half = stored(*parse_safetensors(small).find("bf16"));
  CHECK(half.dtype == DType::bf16);
  CHECK(half.tensor().value(2) == -2.25);
}

TEST_CASE("what is written is read again, and by a reader in plain Python") {
  const TemporaryFolder folder;
  StoredTensor a{"a", DType::f64, Shape{2, 2}, std::vector<std::byte>(32)}, b{"b", DType::f16, Shape{3}, {}};
  const double values[] = {1, -2, 0.5, 1e300};
  std::memcpy(a.bytes.data(), values, sizeof values);
  b.bytes.resize(6);
  write_safetensors(folder / "own", {source_of(b), source_of(a)}, {{"key", "value"}});
  const std::string bytes = read_text(folder / "own");
  const SafetensorsFile file = parse_safetensors(bytes);
  CHECK(file.names() == std::vector<std::string>{"b", "a"});
  CHECK(file.metadata.at("key") == "value");
  CHECK(values_of(stored(*file.find("a"))) == std::vector<double>{1, -2, 0.5, 1e300});
  const Finished python = run_command(
      quoted(MOE_DIAG_PYTHON) +
      " -c \"import json,numpy,struct,sys; b=open(sys.argv[1],'rb').read();"
      "n=struct.unpack('<Q',b[:8])[0]; h=json.loads(b[8:8+n]); o=h['a']['data_offsets'];"
      "print(n%8, h['a']['dtype'], h['a']['shape'], numpy.frombuffer(b[8+n+o[0]:8+n+o[1]],'<f8').tolist())\" " +
      quoted(folder / "own"));
  CHECK(python.out == "0 F64 [2, 2] [1.0, -2.0, 0.5, 1e+300]\n");
}

TEST_CASE("a source that writes another number of bytes is refused") {
  const TemporaryFolder folder;
  const TensorSource source{"a", "F32", {2}, 8, [](const TensorSource::Put& put) { put("abcd", 4); }};
  CHECK_THROWS_WITH(write_safetensors(folder / "own", {source}),
                    folder / "own" + ": tensor a: expected 8 bytes to be written, found 4");
}

TEST_CASE("a corrupt safetensors file is refused, and never read past its end") {
  const std::string good = "{" + entry("a", "F32", "[2]", "[0,8]") + "}";
  REQUIRE(refusal(file_of(good, 8)).empty());
  const std::vector<std::pair<std::string, std::string>> cases{
      {"", "it has 0 bytes, too few for a safetensors file"},
      {"1234567", "it has 7 bytes, too few for a safetensors file"},
      {std::string(8, '\xff'), "expected at most 104857600: no safetensors file"},
      {file_of(good, 8).substr(0, 20), "and ends within it: 12 bytes follow"},
      {file_of("not json"), "its header is no JSON"},
      {file_of("{\"a\": \"\xff\xfe\"}"), "its header is no JSON"},
      {file_of("[]"), "its header is no JSON object"},
      {file_of(""), "its header is no JSON"},
      {file_of("{" + entry("a", "F32", "[2]", "[0,8]") + "," + entry("a", "F32", "[2]", "[0,8]") + "}", 8),
       "its header names 'a' twice"},
      {file_of(R"({"__metadata__":{"x":"1","x":"2"}})"), "its header names 'x' twice"},
      {file_of(R"({"__metadata__":{"x":1}})"), "its __metadata__ 'x' is no text"},
      {file_of(R"({"__metadata__":[]})"), "its __metadata__ is no JSON object"},
      {file_of(R"({"a":3})"), "expected an object with dtype, shape and data_offsets"},
      {file_of(R"({"a":{"shape":[],"data_offsets":[0,0]}})"), "tensor 'a': has no dtype"},
      {file_of("{" + entry("a", "F32", "2", "[0,8]") + "}", 8), "has no shape of numbers"},
      {file_of("{" + entry("a", "F32", "[-2]", "[0,8]") + "}", 8), "has no shape of numbers"},
      {file_of("{" + entry("a", "F32", "[2.0]", "[0,8]") + "}", 8), "has no shape of numbers"},
      {file_of("{" + entry("a", "F32", "[18446744073709551615]", "[0,8]") + "}", 8), "has no shape of numbers"},
      {file_of("{" + entry("a", "F32", "[2]", "[0]") + "}", 8), "has no pair of data_offsets"},
      {file_of("{" + entry("a", "F32", "[2]", "[-8,0]") + "}", 8), "has no pair of data_offsets"},
      {file_of("{" + entry("a", "F32", "[2]", "[0,16]") + "}", 8), "its data_offsets are [0, 16], and 8 bytes of data"},
      {file_of("{" + entry("a", "F32", "[2]", "[8,0]") + "}", 8), "its data_offsets are [8, 0]"},
      {file_of("{" + entry("a", "F32", "[3]", "[0,8]") + "}", 8),
       "F32 of shape [3] has 12 bytes, expected by its data_offsets 8"},
      {file_of("{" + entry("a", "F32", "[4611686018427387904,4]", "[0,8]") + "}", 8), "has too many bytes"},
      {file_of("{" + entry("a", "F31", "[2]", "[0,8]") + "}", 8), "dtype 'F31' is not known"},
      {file_of("{" + entry("a", "F32", "[2]", "[0,8]") + "," + entry("b", "F32", "[2]", "[4,12]") + "}", 12),
       "tensor 'b': lies over another one"},
      {file_of("{" + entry("a", "F32", "[1]", "[0,4]") + "," + entry("b", "F32", "[1]", "[8,12]") + "}", 12),
       "bytes 4 to 7 of its data belong to no tensor"},
      {file_of(good, 12), "its last 4 bytes belong to no tensor"},
      {file_of(std::string(100000, '[')), "its header is no JSON"},
      {file_of("{\"a\":" + std::string(1000, '[') + std::string(1000, ']') + "}"), "tensor 'a'"},
  };
  for (const auto& [bytes, expected] : cases) {
    const std::string why = refusal(bytes);
    INFO(expected << "\n" << why);
    CHECK(why.find(expected) != std::string::npos);
  }
}

TEST_CASE("no prefix of a safetensors file, and no file with a changed byte, is read past its end") {
  const std::string bytes = golden("values.safetensors");
  for (std::size_t size = 0; size < bytes.size(); ++size) CHECK_FALSE(refusal(bytes.substr(0, size)).empty());
  for (std::size_t at = 0; at < bytes.size(); ++at)
    for (const char flip : {'\x01', '\x80'}) {
      std::string changed = bytes;
      changed[at] = static_cast<char>(changed[at] ^ flip);
      refusal(changed);
    }
}

}  // namespace moe_diag
