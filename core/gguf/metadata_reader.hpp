// SPDX-License-Identifier: MIT
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "core/api/error.hpp"
#include "core/gguf/gguf_file.hpp"

namespace moe_diag {

// Throws Error (environment) that begins with the file's name.
template <class... Args>
[[noreturn]] void refuse_file(const GgufFile& file, fmt::format_string<Args...> message, Args&&... args) {
  throw Error(ErrorKind::environment,
              fmt::format("{}: {}", file.source(), fmt::format(message, std::forward<Args>(args)...)));
}

// A key that changes the mathematics unless it has a value that says "not used". Numbers and booleans (0, 1) alike.
struct MetadataSwitch {
  std::string_view key;
  double off, also_off;
  std::string_view what;
};

// Reads the keys of one architecture, "<architecture>.<key>". No value is believed.
class MetadataReader {
 public:
  static constexpr std::int64_t largest_size = 1 << 24;  // products of two sizes are checked where they are formed

  MetadataReader(const GgufFile& file, std::string_view architecture) : file_(file), architecture_(architecture) {}

  // "<architecture>.<key>"
  std::string full(std::string_view key) const { return fmt::format("{}.{}", architecture_, key); }

  // Throw Error (environment) when the key is missing or its value cannot be.
  int size(std::string_view key) const;
  float positive(std::string_view key) const;

  // Every key of the architecture is either known, or a switch that is off: one that nobody here knows may change
  // anything. Throws Error (environment).
  void refuse_others(std::span<const std::string_view> known, std::span<const MetadataSwitch> switches) const;

 private:
  void refuse_switch(const GgufEntry& entry, const MetadataSwitch& s) const;

  const GgufFile& file_;
  const std::string_view architecture_;
};

}  // namespace moe_diag
