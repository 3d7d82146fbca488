// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <random>
#include <sstream>
#include <string>

#include "core/contract/contract.hpp"
#include "tests/support/catch.hpp"

namespace moe_diag {
namespace {

const std::string& quickstart() {
  static const std::string text = [] {
    std::ifstream in(MOE_DIAG_SOURCE_DIR "/contracts/quickstart.yaml", std::ios::binary);
    std::ostringstream out;
    out << in.rdbuf();
    return out.str();
  }();
  return text;
}

// True for "c.yaml:LINE:COLUMN: MESSAGE", and for the line that counts what was left out.
bool has_place(const std::string& line) {
  int used = 0, row = 0, column = 0;
  if (line.rfind("c.yaml: and ", 0) == 0) return true;
  const int read = std::sscanf(line.c_str(), "c.yaml:%d:%d: %n", &row, &column, &used);
  return read == 2 && row > 0 && column > 0 && used > 0 && line.size() > static_cast<std::size_t>(used);
}

// "accepted", "refused", or what went wrong in the parser itself.
std::string fate(const std::string& text) {
  try {
    parse_contract(text, "c.yaml");
    return "accepted";
  } catch (const Error& e) {
    const std::string what = e.what();
    if (e.kind() != ErrorKind::usage) return "wrong kind: " + what;
    std::istringstream lines(what);
    for (std::string line; std::getline(lines, line);)
      if (!has_place(line)) return "no place: " + line;
    return "refused";
  } catch (const std::exception& e) {
    return std::string("threw ") + e.what();
  }
}

bool is_clean(const std::string& fate) { return fate == "accepted" || fate == "refused"; }

TEST_CASE("every prefix of a contract is accepted or refused with a place") {
  int accepted = 0;
  for (std::size_t n = 0; n <= quickstart().size(); ++n) {
    const std::string f = fate(quickstart().substr(0, n));
    INFO("prefix of " << n << " bytes: " << f);
    REQUIRE(is_clean(f));
    accepted += f == "accepted";
  }
  CHECK(accepted >= 1);
  CHECK(accepted < 400);
}

// One random change: a bit, a byte, a span that is lost, a line that is lost, repeated or moved.
std::string mutated(std::string text, std::mt19937& random) {
  const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random() % std::max<std::size_t>(n, 1)); };
  if (text.empty()) return "a";
  const std::size_t at = below(text.size());
  const std::string marks = "{}[]:,-#&*!|>'\"%@`?~ \t\n\r.0\x01\xff";
  switch (random() % 6) {
    case 0: text[at] = static_cast<char>(text[at] ^ (1 << below(8))); break;
    case 1: text[at] = marks[below(marks.size())]; break;
    case 2: text.insert(at, 1, marks[below(marks.size())]); break;
    case 3: text.erase(at, 1 + below(40)); break;
    default: {
      const std::size_t start = text.rfind('\n', at) == std::string::npos ? 0 : text.rfind('\n', at) + 1;
      const std::size_t end = text.find('\n', at) == std::string::npos ? text.size() : text.find('\n', at) + 1;
      if (start >= end) break;
      const std::string line = text.substr(start, end - start);
      if (random() % 2 == 0) text.erase(start, end - start);
      if (random() % 2 == 0) text.insert(below(text.size()), line);
    }
  }
  return text;
}

TEST_CASE("random changes of a contract are accepted or refused with a place") {
  std::mt19937 random(7);
  int refused = 0;
  for (int i = 0; i < 4000; ++i) {
    std::string text = quickstart();
    for (unsigned k = 0, n = 1 + random() % 4; k < n; ++k) text = mutated(std::move(text), random);
    const std::string f = fate(text);
    INFO("mutation " << i << ": " << f << "\n" << text);
    REQUIRE(is_clean(f));
    refused += f == "refused";
  }
  CHECK(refused > 1000);
  CHECK(refused < 4000);
}

TEST_CASE("hostile files are refused quickly") {
  const std::size_t much = (1 << 20) - 100;
  const auto repeated = [&](const std::string& unit) {
    std::string text;
    while (text.size() + unit.size() < much) text += unit;
    return text;
  };
  for (const std::string unit : {"[",  "{",    "- ",     "? ", ": ", "a: ",    "[]", "---\n", "&a ", "!a ", "'",
                                 "\"", "a: {", "- {a: ", "\n", " ",  "a: 1\n", "\\", "*a ",   "%",   "#"}) {
    INFO(unit);
    CHECK(fate(repeated(unit)) == "refused");
  }
  CHECK(fate(std::string((1 << 20) + 1, 'a')) == "refused");
  CHECK(fate("prompts: " + repeated("[1, ")) == "refused");
  CHECK(fate("lanes: {" + repeated("a: {inputs: b}, ") + "}") == "refused");
  CHECK(fate("a: '" + std::string(much, 'x')) == "refused");
  CHECK(fate(std::string("metadata\0: 1", 12)) == "refused");
  CHECK(fate("\xff\xfe"
             "a") == "refused");
}

TEST_CASE("a long list of mistakes ends with their number") {
  std::string text = "prompts:\n";
  for (int i = 0; i < 1000; ++i) text += "  - 1\n";
  CHECK_THROWS_WITH(parse_contract(text, "c.yaml"), Catch::Matchers::Contains("c.yaml: and 904 more"));
}

}  // namespace
}  // namespace moe_diag
