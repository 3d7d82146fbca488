// SPDX-License-Identifier: MIT
#include <string>
#include <vector>

#include "core/model/vocabulary.hpp"
#include "tests/support/catch.hpp"

namespace moe_diag {

TEST_CASE("texts of byte-level BPE are decoded") {
  CHECK(bytes_of_byte_level("the") == "the");
  CHECK(bytes_of_byte_level("\u0120the") == " the");
  CHECK(bytes_of_byte_level("\u010A\u0109\u010D") == "\n\t\r");
  CHECK(bytes_of_byte_level("\u00E4\u00BD\u0142\u00E5\u00A5\u00BD") ==
        "\u4F60\u597D");  // as Qwen's vocabulary writes it
  CHECK(bytes_of_byte_level("\u0100") == std::string(1, '\0'));
  CHECK(bytes_of_byte_level("\u0143") == "\xAD");
  CHECK(bytes_of_byte_level("\u0144\u4F60") == "\u0144\u4F60");  // not of the alphabet
  CHECK(bytes_of_byte_level("\xC4") == "\xC4");                  // not UTF-8
}

TEST_CASE("every byte has its character") {
  // By the definition: printable characters of Latin-1 stand for themselves, the others follow from 256 on.
  int renamed = 0;
  for (int byte = 0; byte < 256; ++byte) {
    const bool itself = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    const int code = itself ? byte : 256 + renamed++;
    std::string character;
    if (code < 0x80)
      character = static_cast<char>(code);
    else
      character = {static_cast<char>(0xC0 | code >> 6), static_cast<char>(0x80 | (code & 0x3F))};
    INFO(byte);
    CHECK(bytes_of_byte_level(character) == std::string(1, static_cast<char>(byte)));
  }
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

}  // namespace moe_diag
