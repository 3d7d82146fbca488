// SPDX-License-Identifier: MIT
#include "core/text/quote.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>

#include "core/text/utf8.hpp"

namespace moe_diag {
namespace {

// Characters that move the cursor, turn the writing's direction or cannot be seen.
bool is_control(std::uint32_t code) {
  return code < 0x20 || (code >= 0x7F && code < 0xA0) || code == 0xAD || (code >= 0x200B && code <= 0x200F) ||
         (code >= 0x2028 && code <= 0x202E) || (code >= 0x2060 && code <= 0x206F) || code == 0xFEFF;
}

std::string escaped(std::uint32_t code) {
  switch (code) {
    case '\n': return "\\n";
    case '\r': return "\\r";
    case '\t': return "\\t";
    case '\'': return "\\'";
    case '\\': return "\\\\";
    default: return code < 0x80 ? fmt::format("\\x{:02x}", code) : fmt::format("\\u{{{:x}}}", code);
  }
}

}  // namespace

std::string shown(std::string_view text) {
  constexpr std::size_t longest = 60;  // bytes
  std::string out(text.substr(0, longest));
  for (char& c : out)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  // A character cut in the middle would make the message invalid UTF-8.
  if (text.size() > longest) {
    while (!out.empty() && (static_cast<unsigned char>(text[out.size()]) & 0xC0) == 0x80) out.pop_back();
    out += "...";
  }
  return out;
}

std::string quoted_bytes(std::string_view text) {
  constexpr std::size_t longest = 96;
  std::string out = "'";
  for (const char c : text.substr(0, longest)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte >= 0x7F)
      out += fmt::format("\\x{:02x}", byte);
    else
      out += c;
  }
  return out + (text.size() > longest ? "...'" : "'");
}

std::string quoted_line(std::string_view text) {
  std::string line = "'";
  const std::size_t all = text.size();
  while (!text.empty() && all - text.size() < longest_quoted_line) {
    const Character c = first_character(text);
    if (c.bytes == 0)
      line += fmt::format("\\x{:02x}", static_cast<unsigned char>(text.front()));
    else if (is_control(c.code) || c.code == '\'' || c.code == '\\')
      line += escaped(c.code);
    else
      line += text.substr(0, c.bytes);
    text.remove_prefix(std::max<std::size_t>(c.bytes, 1));
  }
  return line + (text.empty() ? "'" : "...'");
}

std::string shell_word(std::string_view text) {
  const auto is_plain = [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
           std::string_view("/._-+=:,@%").find(c) != std::string_view::npos;
  };
  if (!text.empty() && std::all_of(text.begin(), text.end(), is_plain)) return std::string(text);
  std::string word = "'";
  for (const char c : text) word += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return word + "'";
}

}  // namespace moe_diag
