// SPDX-License-Identifier: MIT
#include "core/gguf/gguf_header.hpp"

#include <cstring>

namespace moe_diag {
namespace {

template <class T>
void append(std::string& out, T value) {
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof value);
  out.append(bytes, sizeof value);
}

void append_text(std::string& out, std::string_view text) {
  append(out, static_cast<std::uint64_t>(text.size()));
  out.append(text);
}

std::uint64_t padded(std::uint64_t size) {
  return (size + GgufHeader::alignment - 1) / GgufHeader::alignment * GgufHeader::alignment;
}

}  // namespace

void GgufHeader::add_key(std::string_view key, GgufType type) {
  append_text(metadata_, key);
  append(metadata_, static_cast<std::uint32_t>(type));
  ++entries_;
}

void GgufHeader::add(std::string_view key, std::uint32_t value) {
  add_key(key, GgufType::u32);
  append(metadata_, value);
}
void GgufHeader::add(std::string_view key, std::uint64_t value) {
  add_key(key, GgufType::u64);
  append(metadata_, value);
}
void GgufHeader::add(std::string_view key, const std::vector<int>& values) {
  add_key(key, GgufType::array);
  append(metadata_, static_cast<std::uint32_t>(GgufType::i32));
  append(metadata_, static_cast<std::uint64_t>(values.size()));
  for (const int value : values) append(metadata_, static_cast<std::int32_t>(value));
}
void GgufHeader::add(std::string_view key, float value) {
  add_key(key, GgufType::f32);
  append(metadata_, value);
}
void GgufHeader::add(std::string_view key, bool value) {
  add_key(key, GgufType::boolean);
  append(metadata_, static_cast<std::uint8_t>(value));
}
void GgufHeader::add(std::string_view key, std::string_view value) {
  add_key(key, GgufType::text);
  append_text(metadata_, value);
}

void GgufHeader::add_tensor(std::string_view name, BlockType type, const std::vector<std::int64_t>& dims) {
  const BlockInfo& block = info(type);
  append_text(table_, name);
  append(table_, static_cast<std::uint32_t>(dims.size()));
  std::uint64_t elements = 1;
  for (const std::int64_t size : dims) {
    append(table_, static_cast<std::uint64_t>(size));
    elements *= static_cast<std::uint64_t>(size);
  }
  append(table_, static_cast<std::uint32_t>(type));
  append(table_, end_);
  end_ += padded(elements / static_cast<std::uint64_t>(block.elements) * static_cast<std::uint64_t>(block.bytes));
  ++tensors_;
}

std::vector<std::byte> GgufHeader::bytes() const {
  std::string out = "GGUF";
  append(out, std::uint32_t{3});
  append(out, tensors_);
  append(out, entries_);
  out += metadata_;
  out += table_;
  out.resize(padded(out.size()), '\0');
  std::vector<std::byte> bytes(out.size());
  std::memcpy(bytes.data(), out.data(), out.size());
  return bytes;
}

}  // namespace moe_diag
