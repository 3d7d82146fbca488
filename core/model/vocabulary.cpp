// SPDX-License-Identifier: MIT
#include "core/model/vocabulary.hpp"

#include <algorithm>
#include <array>

#include "core/gguf/gguf_file.hpp"
#include "core/text/quote.hpp"
#include "core/text/utf8.hpp"

namespace moe_diag {
namespace {

constexpr std::size_t longest_shown = 64;  // bytes

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

Vocabulary::Vocabulary(const GgufFile& file) : texts_(file.texts("tokenizer.ggml.tokens")) {
  const GgufEntry* model = file.find("tokenizer.ggml.model");
  byte_level_ = model && model->type == GgufType::text && *file.text("tokenizer.ggml.model") == "gpt2";
}

std::string Vocabulary::quoted_text(std::int64_t token) const {
  if (token < 0 || token >= static_cast<std::int64_t>(texts_.size())) return "";
  // What is not shown need not be decoded: a character of the alphabet is at most four bytes.
  const std::string_view text = texts_[static_cast<std::size_t>(token)].substr(0, 4 * longest_quoted_line + 4);
  return quoted_line(byte_level_ ? bytes_of_byte_level(text) : std::string(text));
}

}  // namespace moe_diag
