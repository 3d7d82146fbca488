// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace moe_diag {

struct Character {
  std::uint32_t code = 0;  // of Unicode
  std::size_t bytes = 0;   // 0: what stands there is not UTF-8
};

// The character at the beginning of a text that is not empty. Over-long forms and surrogates are none.
Character first_character(std::string_view text);

// Where the first byte stands that is not UTF-8; none when all of the text is.
std::optional<std::size_t> first_not_utf8(std::string_view text);

// Valid UTF-8 without control characters: what is not becomes U+FFFD. Line feeds and tabs stay.
std::string clean_text(std::string_view text);

}  // namespace moe_diag
