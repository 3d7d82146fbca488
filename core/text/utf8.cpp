// SPDX-License-Identifier: MIT
#include "core/text/utf8.hpp"

#include <utf8.h>

namespace moe_diag {
namespace {

constexpr std::size_t longest_character = 4;  // bytes

// Control characters, and characters that XML forbids.
bool is_unclean(std::uint32_t code) {
  return code < 0x20 || (code >= 0x7F && code < 0xA0) || code == 0xFFFE || code == 0xFFFF;
}

}  // namespace

Character first_character(std::string_view text) {
  const std::string_view head = text.substr(0, longest_character);
  if (utf8::find_invalid(head.begin(), head.end()) == head.begin()) return {};
  auto at = head.begin();
  const auto code = static_cast<std::uint32_t>(utf8::unchecked::next(at));
  return {code, static_cast<std::size_t>(at - head.begin())};
}

std::optional<std::size_t> first_not_utf8(std::string_view text) {
  const auto at = utf8::find_invalid(text.begin(), text.end());
  if (at == text.end()) return std::nullopt;
  return static_cast<std::size_t>(at - text.begin());
}

std::string clean_text(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const Character c = first_character(text);
    const bool stays = c.code == '\n' || c.code == '\t' || (c.bytes > 0 && !is_unclean(c.code));
    out += stays ? text.substr(0, c.bytes) : "\uFFFD";
    text.remove_prefix(stays ? c.bytes : 1);
  }
  return out;
}

}  // namespace moe_diag
