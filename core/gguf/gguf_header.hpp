// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/api/blocks.hpp"
#include "core/gguf/gguf_file.hpp"

namespace moe_diag {

// Builds what stands before the tensor data of a GGUF file, version 3, in the order in which it is added. Says nothing
// about whether the result makes sense: that is GgufFile's to judge.
class GgufHeader {
 public:
  static constexpr std::uint64_t alignment = 32;

  void add(std::string_view key, std::uint32_t value);
  void add(std::string_view key, std::uint64_t value);
  void add(std::string_view key, float value);
  void add(std::string_view key, bool value);
  void add(std::string_view key, std::string_view value);
  void add(std::string_view key, const std::vector<int>& values);
  void add(std::string_view key, const char* value) { add(key, std::string_view(value)); }

  // Places a tensor behind those before it. Dimensions fastest first, the first a multiple of the type's block.
  void add_tensor(std::string_view name, BlockType type, const std::vector<std::int64_t>& dims);

  std::vector<std::byte> bytes() const;              // header and tensor table, padded to where the data starts
  std::uint64_t data_bytes() const { return end_; }  // of all tensors, each padded

 private:
  void add_key(std::string_view key, GgufType type);

  std::uint64_t entries_ = 0, tensors_ = 0, end_ = 0;
  std::string metadata_, table_;
};

}  // namespace moe_diag
