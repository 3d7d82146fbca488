// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cstdint>
#include <string>

#include "core/text/glob.hpp"
#include "core/text/nearest.hpp"
#include "core/text/quote.hpp"
#include "core/text/utf8.hpp"
#include "tests/support/catch.hpp"

namespace moe_diag {

TEST_CASE("characters are what UTF-8 says, and what it forbids is none") {
  const auto first = [](std::string_view text) {
    const Character c = first_character(text);
    return std::pair(c.code, c.bytes);
  };
  using Pair = std::pair<std::uint32_t, std::size_t>;
  CHECK(first("a\xff") == Pair{'a', 1});
  CHECK(first(std::string_view("\0", 1)) == Pair{0, 1});
  CHECK(first("\u00e9t\u00e9") == Pair{0xE9, 2});
  CHECK(first("\uFFFF") == Pair{0xFFFF, 3});
  CHECK(first("\U0010FFFF") == Pair{0x10FFFF, 4});
  for (const char* text : {"\x80", "\xc0\xaf", "\xc3", "\xe2\x82", "\xe0\x9f\xbf", "\xed\xa0\x80", "\xf0\x8f\xbf\xbf",
                           "\xf4\x90\x80\x80", "\xf8\x88\x80\x80\x80", "\xff"}) {
    INFO(quoted_bytes(text));
    CHECK(first(text).second == 0);
    CHECK(first_not_utf8(std::string("abc\u20ac") + text) == 6U);
  }
  CHECK_FALSE(first_not_utf8("").has_value());
  CHECK_FALSE(first_not_utf8("\u4F60\u597D \U0001F600").has_value());
}

TEST_CASE("clean text is valid UTF-8 without control characters") {
  CHECK(clean_text("\xf0\x9f\x98\x80 \xf5\x80\x80\x80 \xc0\x80 \xe2\x82") ==
        "\xf0\x9f\x98\x80 \uFFFD\uFFFD\uFFFD\uFFFD \uFFFD\uFFFD \uFFFD\uFFFD");
  CHECK(clean_text("a\n\tb\x1b\x7f\r") == "a\n\tb\uFFFD\uFFFD\uFFFD");
  CHECK(clean_text("\xef\xbf\xbf") == "\uFFFD\uFFFD\uFFFD");  // U+FFFF, a byte at a time
}

TEST_CASE("texts are shown on one line of UTF-8, whatever they hold") {
  CHECK(quoted_line(" the") == "' the'");
  CHECK(quoted_line("") == "''");
  CHECK(quoted_line("\u4F60\u597D \U0001F600") == "'\u4F60\u597D \U0001F600'");
  CHECK(quoted_line("a\nb\t\r'\\") == R"('a\nb\t\r\'\\')");
  CHECK(quoted_line(std::string("\0\x1b[31m\x7f", 7)) == R"('\x00\x1b[31m\x7f')");
  CHECK(quoted_line("\u0085\u202E\u200B\uFEFF") == R"('\u{85}\u{202e}\u{200b}\u{feff}')");
  CHECK(quoted_line("\xE4\xBD") == R"('\xe4\xbd')");          // a character cut short
  CHECK(quoted_line("\xC0\xAF\xFF") == R"('\xc0\xaf\xff')");  // over-long, and no head at all
  CHECK(quoted_line("\xED\xA0\x80") == R"('\xed\xa0\x80')");  // a surrogate
  CHECK(quoted_line("\xF4\x90\x80\x80") == R"('\xf4\x90\x80\x80')");
  CHECK(quoted_line(std::string(64, 'x')) == "'" + std::string(64, 'x') + "'");
  CHECK(quoted_line(std::string(1000, 'x')) == "'" + std::string(64, 'x') + "...'");
}

TEST_CASE("text of a user and of a file is fit for a message") {
  CHECK(shown("a\nb\x7f\u00e9") == "a b \u00e9");
  CHECK(shown(std::string(59, 'x') + "\u00e9\u00e9") == std::string(59, 'x') + "...");  // no half character
  CHECK(shown(std::string(60, 'x')) == std::string(60, 'x'));
  CHECK(quoted_bytes("a\n\xc3\xa9") == "'a\\x0a\\xc3\\xa9'");
  CHECK(quoted_bytes(std::string(97, 'x')) == "'" + std::string(96, 'x') + "...'");
  CHECK(shell_word("a/b.c") == "a/b.c");
  CHECK(shell_word("it's") == "'it'\\''s'");
  CHECK(shell_word("") == "''");
}

TEST_CASE("a glob means all of the text") {
  CHECK(glob_matches("moe_*", "moe_ffn_out"));
  CHECK(glob_matches("*_o?t", "attn_out"));
  CHECK(glob_matches("*", ""));
  CHECK_FALSE(glob_matches("moe", "moe_ffn_out"));
  CHECK_FALSE(glob_matches("?", ""));
  CHECK_FALSE(glob_matches(std::string(40, '*') + "b", std::string(4000, 'a')));
}

TEST_CASE("the nearest name is close, or there is none") {
  CHECK(nearest("cudda", {"cpu", "cuda"}) == "cuda");
  CHECK(nearest("LM_HEAD", {"lm_head", "embedding"}) == "lm_head");
  CHECK(nearest("moe_rout", {"moe_ffn_out", "moe_router_logits"}) == "moe_router_logits");  // cut short
  CHECK_FALSE(nearest("zebra", {"cpu", "cuda"}).has_value());
  CHECK_FALSE(nearest("", {"cpu"}).has_value());
  CHECK(unknown("lane", "cudda", {"cpu", "cuda"}) == "unknown lane 'cudda', did you mean 'cuda'? Known: cpu, cuda");
  CHECK(unknown("lane", "x", {}) == "unknown lane 'x'. There is no lane here");
}

}  // namespace moe_diag
