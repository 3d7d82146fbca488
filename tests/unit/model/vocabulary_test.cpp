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

}  // namespace moe_diag
