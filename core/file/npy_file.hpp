// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace moe_diag {

// An array as numpy.save writes it, in C order. Points into the file's bytes.
struct NpyArray {
  std::string type;                 // numpy's: "<f4"
  std::vector<std::int64_t> shape;  // slowest dimension first
  std::string_view data;            // as many bytes as type and shape say

  std::int64_t count() const;
};

// All that stands before the values of an .npy file.
struct NpyHead {
  std::string type;                 // numpy's: "<f4"
  std::vector<std::int64_t> shape;  // slowest dimension first; as the file says, each at least 0
  std::size_t bytes = 0;            // before the first value
};

// Takes versions 1 to 3 of the format, arrays in C order and any type. Does not look at what follows the header: a
// file that is being written has other values than its shape says. Throws Error(usage) with what is wrong.
NpyHead parse_npy_head(std::string_view file);

// Takes versions 1 to 3 of the format, and little-endian numbers of 4 and 8 bytes. Throws Error(usage) with what is
// wrong.
NpyArray parse_npy(std::string_view file);

}  // namespace moe_diag
