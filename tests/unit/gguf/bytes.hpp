// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace moe_diag::test {

// A GGUF file written byte by byte, right or wrong as the test wants it.
class Bytes {
 public:
  template <class T>
  Bytes& put(T value) {
    char raw[sizeof(T)];
    std::memcpy(raw, &value, sizeof value);
    text_.append(raw, sizeof value);
    return *this;
  }
  Bytes& u32(std::uint32_t value) { return put(value); }
  Bytes& u64(std::uint64_t value) { return put(value); }
  Bytes& text(std::string_view value) {
    u64(value.size());
    text_.append(value);
    return *this;
  }
  Bytes& raw(std::string_view value) {
    text_.append(value);
    return *this;
  }
  Bytes& pad(std::size_t alignment) {
    text_.resize((text_.size() + alignment - 1) / alignment * alignment, '\0');
    return *this;
  }
  Bytes& zeros(std::size_t count) {
    text_.append(count, '\0');
    return *this;
  }

  Bytes& preamble(std::uint64_t tensors, std::uint64_t entries, std::uint32_t version = 3) {
    return raw("GGUF").u32(version).u64(tensors).u64(entries);
  }
  Bytes& tensor(std::string_view name, const std::vector<std::uint64_t>& dims, std::uint32_t type,
                std::uint64_t offset) {
    text(name).u32(static_cast<std::uint32_t>(dims.size()));
    for (const std::uint64_t size : dims) u64(size);
    return u32(type).u64(offset);
  }

  std::vector<std::byte> done() const {
    std::vector<std::byte> bytes(text_.size());
    std::memcpy(bytes.data(), text_.data(), text_.size());
    return bytes;
  }

 private:
  std::string text_;
};

}  // namespace moe_diag::test
