// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace moe_diag {

class GgufFile;

// The texts of a model's tokens (`tokenizer.ggml.tokens`), read from the file's bytes, which must outlive it. Nothing
// in them is trusted: whatever they hold, what comes out is a line of UTF-8.
class Vocabulary {
 public:
  Vocabulary() = default;  // of a model that has none
  explicit Vocabulary(const GgufFile& file);

  bool empty() const { return texts_.empty(); }
  // The text of a token for people, in quotes: "' the'", "'\n'" as it is written in C, bytes that are no character as
  // "\xe2". Empty when there is none.
  std::string quoted_text(std::int64_t token) const;

 private:
  std::vector<std::string_view> texts_;
  bool byte_level_ = false;  // texts are in the alphabet of GPT-2's byte-level BPE
};

// The bytes that a text in the alphabet of byte-level BPE stands for; characters outside of it stand for themselves.
// Source: bytes_to_unicode() of OpenAI's gpt-2, src/encoder.py.
std::string bytes_of_byte_level(std::string_view text);

}  // namespace moe_diag
