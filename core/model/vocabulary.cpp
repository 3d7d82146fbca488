// SPDX-License-Identifier: MIT
#include "core/model/vocabulary.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "core/gguf/gguf_file.hpp"

namespace moe_diag {
namespace {

constexpr std::size_t longest_shown = 64;  // bytes

struct Character {
  std::uint32_t code = 0;
  std::size_t bytes = 0;  // 0: what stands there is not UTF-8
};

// The character at the beginning of a text that is not empty; over-long forms and surrogates are none.
Character first_character(std::string_view text) {
  const auto byte = [&](std::size_t i) -> std::uint32_t { return static_cast<unsigned char>(text[i]); };
  const std::uint32_t head = byte(0);
  if (head < 0x80) return {head, 1};
  const std::size_t bytes = head >= 0xF0 ? 4 : head >= 0xE0 ? 3 : 2;
  if (head < 0xC2 || head > 0xF4 || text.size() < bytes) return {};
  std::uint32_t code = head & (0x7Fu >> bytes);
  for (std::size_t i = 1; i < bytes; ++i) {
    if ((byte(i) & 0xC0u) != 0x80u) return {};
    code = code << 6 | (byte(i) & 0x3Fu);
  }
  constexpr std::array<std::uint32_t, 5> least{0, 0, 0x80, 0x800, 0x10000};
  if (code < least[bytes] || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) return {};
  return {code, bytes};
}

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

bool stands_for_itself(std::uint32_t byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || (byte >= 0xAE && byte <= 0xFF);
}

// The bytes that have no letter of their own, in order: the n-th is written as the character 256 + n.
std::array<char, 68> renamed_bytes() {
  std::array<char, 68> bytes{};
  std::size_t n = 0;
  for (std::uint32_t byte = 0; byte < 256; ++byte)
    if (!stands_for_itself(byte)) bytes[n++] = static_cast<char>(byte);
  return bytes;
}

}  // namespace

std::string bytes_of_byte_level(std::string_view text) {
  static const std::array<char, 68> renamed = renamed_bytes();
  std::string bytes;
  while (!text.empty()) {
    const Character c = first_character(text);
    const std::size_t size = std::max<std::size_t>(c.bytes, 1);
    if (c.bytes > 0 && c.code < 256 && stands_for_itself(c.code))
      bytes += static_cast<char>(c.code);
    else if (c.bytes > 0 && c.code >= 256 && c.code < 256 + renamed.size())
      bytes += renamed[c.code - 256];
    else
      bytes += text.substr(0, size);
    text.remove_prefix(size);
  }
  return bytes;
}

std::string quoted_line(std::string_view text) {
  std::string line = "'";
  const std::size_t all = text.size();
  while (!text.empty() && all - text.size() < longest_shown) {
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

Vocabulary::Vocabulary(const GgufFile& file) : texts_(file.texts("tokenizer.ggml.tokens")) {
  const GgufEntry* model = file.find("tokenizer.ggml.model");
  byte_level_ = model && model->type == GgufType::text && *file.text("tokenizer.ggml.model") == "gpt2";
}

std::string Vocabulary::quoted_text(std::int64_t token) const {
  if (token < 0 || token >= static_cast<std::int64_t>(texts_.size())) return "";
  // What is not shown need not be decoded: a character of the alphabet is at most four bytes.
  const std::string_view text = texts_[static_cast<std::size_t>(token)].substr(0, 4 * longest_shown + 4);
  return quoted_line(byte_level_ ? bytes_of_byte_level(text) : std::string(text));
}

}  // namespace moe_diag
