// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/api/blocks.hpp"

namespace moe_diag {

// Type ids of metadata values, as they stand in the file.
enum class GgufType : std::uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, text, array, u64, i64, f64 };

std::string_view name_of(GgufType type);

// One metadata entry; everything points into the file.
struct GgufEntry {
  std::string_view key;
  GgufType type = GgufType::u8;
  GgufType element = GgufType::u8;   // of an array
  std::uint64_t count = 0;           // elements of an array, bytes of a text
  const std::byte* value = nullptr;  // the number, the first character, or the first element
};

// One row of the tensor table, checked against the file.
struct GgufTensor {
  std::string_view name;  // points into the file
  BlockType type = BlockType::f32;
  std::uint32_t type_id = 0;  // as it stands in the file; in an outline, of types that cannot be read, too
  int rank = 1;
  std::array<std::int64_t, 4> dims{1, 1, 1, 1};  // fastest first, as in the file; 1 beyond rank
  std::uint64_t offset = 0;                      // from the start of its file
  std::uint64_t bytes = 0;
  const std::byte* data = nullptr;  // null in an outline
  std::size_t part = 0;             // which file has it, where a model has several
};

// A GGUF file, version 2 or 3, little-endian: what stands before the tensor data, validated whole. Tensor data is not
// touched. Source: ggml/docs/gguf.md.
class GgufFile {
 public:
  // Parses a file's bytes, which must outlive the result. `source` opens every message. Throws Error (environment) for
  // anything that is not a well-formed file of supported tensor types.
  static GgufFile parse(std::span<const std::byte> bytes, std::string source);
  // The same of a file that parse() may refuse: a tensor's type may be any, and its data need not be there. To be
  // listed, not to be computed: offsets count from the start of the data, and are not checked.
  static GgufFile outline(std::span<const std::byte> bytes, std::string source);

  // Takes over the tensors of another part of the same model, behind its own. Metadata stays that of the first. Throws
  // Error (environment) for a tensor that both have.
  void add_part(GgufFile part);

  std::uint32_t version() const { return version_; }
  std::uint64_t alignment() const { return alignment_; }
  std::span<const std::byte> bytes() const { return bytes_; }  // of the first part
  // The headers of all parts, each up to the end of its tensor table.
  const std::vector<std::span<const std::byte>>& headers() const { return headers_; }
  const std::string& source() const { return source_; }

  const std::vector<GgufEntry>& metadata() const { return metadata_; }  // in file order
  const std::vector<GgufTensor>& tensors() const { return tensors_; }   // in file order
  const GgufEntry* find(std::string_view key) const;                    // null: not there
  const GgufTensor* find_tensor(std::string_view name) const;           // null: not there

  // A value by key; empty when there is none. Throws Error (environment), naming the key, when it has another type or
  // does not fit. An integer may be stored in any integer type, a real in any number type.
  std::optional<std::int64_t> integer(std::string_view key) const;
  std::optional<double> real(std::string_view key) const;
  std::optional<bool> boolean(std::string_view key) const;
  std::optional<std::string_view> text(std::string_view key) const;
  // The elements of an array of integers; empty when there is no such array.
  std::vector<std::int64_t> integers(std::string_view key) const;
  // The elements of an array of texts; none when there is no such array.
  std::vector<std::string_view> texts(std::string_view key) const;

 private:
  friend class GgufParser;
  GgufFile() = default;

  std::span<const std::byte> bytes_;
  std::string source_;
  std::uint32_t version_ = 0;
  std::uint64_t alignment_ = 32;
  std::vector<std::span<const std::byte>> headers_;
  std::vector<GgufEntry> metadata_;
  std::vector<GgufTensor> tensors_;
  std::unordered_map<std::string_view, std::size_t> keys_, names_;
};

}  // namespace moe_diag
