// SPDX-License-Identifier: MIT
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "core/contract/contract.hpp"
#include "tests/support/catch.hpp"

namespace moe_diag {
namespace {

std::string text_of(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

std::vector<std::filesystem::path> rejected() {
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(MOE_DIAG_SOURCE_DIR "/contracts/rejected"))
    if (entry.path().extension() == ".yaml") files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  return files;
}

// All that is wrong with a contract; empty when nothing is.
std::string mistakes_of(const std::string& text, const std::string& path) {
  try {
    parse_contract(text, path);
  } catch (const Error& e) {
    CHECK(e.kind() == ErrorKind::usage);
    return e.what();
  }
  return "";
}

// The rest of the line is left out: a list that grows.
constexpr std::string_view rest = "...";

TEST_CASE("every rejected contract is refused at the place and for the reason it gives, and for no other") {
  const auto files = rejected();
  CHECK(files.size() >= 100);
  for (const auto& file : files) {
    const std::string text = text_of(file), name = file.filename().string(), mark = "# expect: ";
    INFO(name);
    REQUIRE(text.substr(0, mark.size()) == mark);
    std::string expected = name + ":" + text.substr(mark.size(), text.find('\n') - mark.size());
    std::string found = mistakes_of(text, name);
    if (expected.ends_with(rest)) {
      expected.resize(expected.size() - rest.size());
      CHECK(found.find('\n') == std::string::npos);
      found.resize(std::min(found.size(), expected.size()));
    }
    CHECK(found == expected);
  }
}

TEST_CASE("all mistakes of a file are told, in its order") {
  const std::string text = R"(metadata: {id: several, version: 1.0.0}
model: {synthetic: tiny, seed: 010}
prompts:
  - {id: short, tokens: [3, -1]}
lanes:
  truth: {backend: cpu}
  f32: {backend: cpu, numerics: f32, inputs: thruth}
oracle: truth
falsifiers:
  - {id: A, claim: a, lane: f23, stage: moe_fnn_out, metric: rel_l2, at_least: .inf}
  - {id: A, claim: b, lane: f32, stage: lm_head, metric: rel_l2, at_most: 1, at_most: 2}
)";
  const std::string told = mistakes_of(text, "c.yaml");
  std::vector<std::string> places;
  std::istringstream lines(told);
  for (std::string line; std::getline(lines, line);) places.push_back(line.substr(0, line.find(' ')));
  CHECK(places ==
        std::vector<std::string>{"c.yaml:1:11:", "c.yaml:2:32:", "c.yaml:4:29:", "c.yaml:6:10:", "c.yaml:7:46:",
                                 "c.yaml:10:29:", "c.yaml:10:41:", "c.yaml:10:80:", "c.yaml:11:5:", "c.yaml:11:78:"});
}

TEST_CASE("a file that cannot be read says why") {
  CHECK_THROWS_WITH(read_contract("no/such.yaml"),
                    Catch::Matchers::Contains("no/such.yaml") && Catch::Matchers::Contains("there is no such file"));
  CHECK_THROWS_WITH(read_contract(MOE_DIAG_SOURCE_DIR), Catch::Matchers::Contains("it is a folder"));
}

}  // namespace
}  // namespace moe_diag
