// SPDX-License-Identifier: MIT
// Prompts out of files: what is taken, and what is refused with its place in the contract and in the file.
#include <sys/stat.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "core/contract/contract.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/temporary_folder.hpp"

namespace moe_diag {
namespace {

using Catch::Matchers::Contains;
using Tokens = std::vector<std::int32_t>;

// A contract beside the file, which is the tokens of its only prompt.
std::string contract_with(const std::string& file, const std::string& more = "") {
  return R"(metadata: {id: test, version: 1.0.0, description: made by a test}
model: {synthetic: tiny}
prompts:
  - {id: p, tokens_file: )" +
         file + more + R"(}
oracle: truth
lanes: {truth: {backend: cpu, numerics: f64}, f32: {backend: cpu, numerics: f32}}
falsifiers: [{id: A, claim: a, lane: f32, stage: lm_head, metric: rel_l2, at_most: 1, prompts: p}]
)";
}

Contract contract_of(const TemporaryFolder& folder, const std::string& file, const std::string& bytes) {
  write_text(folder / file, bytes);
  return parse_contract(contract_with(file), folder / "c.yaml");
}

std::string mistake_in(const std::string& file, const std::string& bytes) {
  const TemporaryFolder folder;
  try {
    contract_of(folder, file, bytes);
  } catch (const Error& e) {
    CHECK(e.kind() == ErrorKind::usage);
    std::string what = e.what();
    REQUIRE_THAT(what, Contains(folder / "c.yaml:4:26: prompts.p.tokens_file: " + file + ": "));
    return what.substr(what.find(": " + file + ": ") + file.size() + 4);
  }
  return "";
}

std::string le(std::uint64_t value, std::size_t bytes) {
  std::string text(bytes, '\0');
  std::memcpy(text.data(), &value, bytes);
  return text;
}

// As numpy.save writes it.
std::string npy(const std::string& descr, const std::string& shape, const std::string& data,
                const std::string& order = "False", char version = 1) {
  std::string header = "{'descr': '" + descr + "', 'fortran_order': " + order + ", 'shape': (" + shape + "), }\n";
  return std::string("\x93NUMPY") + version + '\0' + le(header.size(), version == 1 ? 2 : 4) + header + data;
}

std::string int64s(const std::vector<std::uint64_t>& values) {
  std::string data;
  for (std::uint64_t v : values) data += le(v, 8);
  return data;
}

}  // namespace

TEST_CASE("an .npy file of int32 or int64 is a prompt") {
  const TemporaryFolder folder;
  const Contract wide = contract_of(folder, "ids.npy", npy("<i8", "3,", int64s({7, 0, 2147483647})));
  REQUIRE(wide.prompts.size() == 1);
  CHECK(wide.prompts[0].id == "p");
  CHECK(wide.prompts[0].tokens == Tokens{7, 0, 2147483647});
  const std::string narrow = le(5, 4) + le(6, 4);
  CHECK(contract_of(folder, "ids.npy", npy("<i4", "2,", narrow)).prompts[0].tokens == Tokens{5, 6});
  CHECK(contract_of(folder, "ids.npy", npy("<i4", "2,", narrow, "False", 2)).prompts[0].tokens == Tokens{5, 6});
}

TEST_CASE("an .npy file that is no list of tokens is refused") {
  const std::string two = int64s({1, 2});
  CHECK(mistake_in("a.npy", "") == "not an .npy file");
  CHECK(mistake_in("a.npy", "\x93NUMPX\x01") == "not an .npy file");
  CHECK_THAT(mistake_in("a.npy", npy("<i8", "2,", two, "False", 9)), Contains("version 9"));
  CHECK(mistake_in("a.npy", npy("<i8", "2,", two).substr(0, 20)) == "it ends within its header");
  CHECK_THAT(mistake_in("a.npy", npy("<i8", "2, 1", two)), Contains("shape is (2, 1)") && Contains("one dimension"));
  CHECK_THAT(mistake_in("a.npy", npy("<i8", "", two.substr(0, 8))), Contains("shape is ()"));
  CHECK_THAT(mistake_in("a.npy", npy("<i8", "-2,", two)), Contains("shape is (-2,)"));
  CHECK_THAT(mistake_in("a.npy", npy("<i8", "99999999999999999999,", two)), Contains("shape is (9999"));
  CHECK_THAT(mistake_in("a.npy", npy("<i8", "2305843009213693954,", two)), Contains("16 bytes follow"));
  CHECK_THAT(mistake_in("a.npy", npy("<f8", "2,", two)), Contains("'<f8'") && Contains("<i4"));
  CHECK_THAT(mistake_in("a.npy", npy(">i8", "2,", two)), Contains("'>i8'"));
  CHECK_THAT(mistake_in("a.npy", npy("|O", "2,", two)), Contains("'|O'"));
  CHECK_THAT(mistake_in("a.npy", npy("<i8", "2,", two, "True")), Contains("Fortran"));
  CHECK_THAT(mistake_in("a.npy", npy("<i8", "3,", two)), Contains("announces 3 elements of 8 bytes, 16 bytes follow"));
  CHECK_THAT(mistake_in("a.npy", npy("<i8", "1,", two)), Contains("announces 1 element"));
  CHECK_THAT(mistake_in("a.npy", npy("<i8", "2,", two + "x")), Contains("17 bytes follow"));
  CHECK_THAT(mistake_in("a.npy", npy("<i8", "2,", int64s({1, 1ull << 31}))), Contains("2147483648 at position 1"));
  CHECK_THAT(mistake_in("a.npy", npy("<i8", "2,", int64s({1, ~0ull}))), Contains("token -1 at position 1"));
  CHECK(mistake_in("a.npy", npy("<i8", "0,", "")) == "there are no tokens in it");
  std::string keyless = npy("<i8", "2,", two);
  keyless.replace(keyless.find("descr"), 5, "dtype");
  CHECK_THAT(mistake_in("a.npy", keyless), Contains("no descr"));
}

TEST_CASE("a .jsonl file of one line is the prompt, one of several is a prompt a line") {
  const TemporaryFolder folder;
  const Contract one = contract_of(folder, "ids.jsonl", "{\"id\": \"mine\", \"text\": \"a b\", \"tokens\": [3, 4]}\n");
  REQUIRE(one.prompts.size() == 1);
  CHECK(one.prompts[0].id == "p");
  CHECK(one.prompts[0].tokens == Tokens{3, 4});

  const Contract three = contract_of(folder, "ids.jsonl", "[1]\n\n{\"tokens\": [2, 3], \"id\": 7}\r\n[4]");
  REQUIRE(three.prompts.size() == 3);
  CHECK(three.prompts[0].id == "p-0");
  CHECK(three.prompts[1].id == "p-7");
  CHECK(three.prompts[2].id == "p-2");
  CHECK(three.prompts[1].tokens == Tokens{2, 3});
  // The entry's id stands for all of them.
  CHECK(three.falsifiers[0].prompts == std::vector<std::string>{"p-0", "p-7", "p-2"});
}

TEST_CASE("generate and chunk hold for every prompt of a file") {
  const TemporaryFolder folder;
  write_text(folder / "ids.jsonl", "[1, 2]\n[3]\n");
  const Contract contract = parse_contract(contract_with("ids.jsonl", ", generate: 5, chunk: 2"), folder / "c.yaml");
  REQUIRE(contract.prompts.size() == 2);
  for (const PromptSpec& p : contract.prompts) {
    CHECK(p.generate == 5);
    CHECK(p.chunk == 2);
    CHECK(p.length() == static_cast<int>(p.tokens.size()) + 5);
  }
}

TEST_CASE("a .jsonl file that is no list of tokens is refused at its line") {
  const auto refused = [](const std::string& line, const std::string& message) {
    INFO(line);
    CHECK_THAT(mistake_in("a.jsonl", "[1]\n" + line + "\n[2]\n"), Contains("line 2: ") && Contains(message));
  };
  refused("[1, 2", "not JSON");
  refused("[1] [2]", "not JSON");
  refused("[01]", "not JSON");
  refused("[1, NaN]", "not JSON");
  refused("[\"\xff\"]", "not JSON");
  refused("[1e999]", "a number is too large");
  refused("7", "found number");
  refused("{\"ids\": [1]}", "\"tokens\" is missing");
  refused("{\"tokens\": 5}", "found number");
  refused("{\"tokens\": [1], \"tokens\": [2]}", "\"tokens\" stands there twice");
  refused("{\"tokens\": [1], \"id\": []}", "\"id\"");
  refused("[]", "no tokens");
  refused("[1, 2.0]", "position 1");
  refused("[true]", "position 0");
  refused("[-1]", "token -1 at position 0");
  refused("[2147483648]", "position 0");
  refused("[18446744073709551615]", "position 0");
  refused(std::string(100000, '['), "nested more than 16 deep");
  CHECK_THAT(mistake_in("a.jsonl", "\n \n"), Contains("no tokens"));
  CHECK_THAT(mistake_in("a.jsonl", "[1]\n{\"id\": \"a/b\", \"tokens\": [1]}"), Contains("sequence 1: 'p-a/b'"));
  CHECK_THAT(mistake_in("a.jsonl", std::string((16 << 20) + 1, ' ')), Contains("larger than 16 MiB"));
  CHECK_THAT(mistake_in("a.txt", "1 2 3"), Contains(".npy or .jsonl"));
}

TEST_CASE("two lines of one id are two prompts of one id, which is refused") {
  const TemporaryFolder folder;
  write_text(folder / "ids.jsonl", "{\"id\": 1, \"tokens\": [1]}\n{\"id\": 1, \"tokens\": [2]}\n");
  CHECK_THROWS_WITH(parse_contract(contract_with("ids.jsonl"), folder / "c.yaml"), Contains("the id 'p-1' is taken"));
}

TEST_CASE("a file of tokens that cannot be read says why") {
  const TemporaryFolder folder;
  CHECK_THROWS_WITH(parse_contract(contract_with("no.npy"), folder / "c.yaml"),
                    Contains("no.npy: there is no such file"));
  REQUIRE(::mkfifo((folder / "pipe.npy").c_str(), 0600) == 0);
  CHECK_THROWS_WITH(parse_contract(contract_with("pipe.npy"), folder / "c.yaml"), Contains("it is no regular file"));
  write_text(folder / "f.npy/x", "");
  CHECK_THROWS_WITH(parse_contract(contract_with("f.npy"), folder / "c.yaml"), Contains("f.npy: it is a folder"));
}

}  // namespace moe_diag
