// SPDX-License-Identifier: MIT
#pragma once

#include <bit>
#include <stdexcept>
#include <string>
#include <string_view>

#include "core/api/tensor.hpp"

namespace moe_diag {

static_assert(std::endian::native == std::endian::little, "arrays are written as they lie in memory");

// Every header has this size, so that the row count can be corrected in place when rows are appended.
inline constexpr std::size_t npy_header_bytes = 128;

constexpr std::string_view npy_type(DType dtype) {
  switch (dtype) {
    case DType::f32: return "<f4";
    case DType::f64: return "<f8";
    case DType::i32: return "<i4";
  }
  return "";
}

// Version 1.0 of numpy.lib.format: magic, version, length of the rest, a Python dictionary padded with blanks.
inline std::string npy_header(DType dtype, const Shape& shape) {
  std::string dict = "{'descr': '" + std::string(npy_type(dtype)) + "', 'fortran_order': False, 'shape': (";
  for (int i = 0; i < shape.rank; ++i) dict += std::to_string(shape[i]) + (i + 1 < shape.rank ? ", " : "");
  dict += shape.rank == 1 ? ",), }" : "), }";

  std::string header("\x93NUMPY\x01\x00", 8);
  const std::size_t rest = npy_header_bytes - header.size() - 2;
  if (dict.size() + 1 > rest) throw std::length_error("a shape does not fit the .npy header: " + dict);
  header += static_cast<char>(rest & 0xFF);
  header += static_cast<char>(rest >> 8);
  return header + dict + std::string(rest - dict.size() - 1, ' ') + '\n';
}

}  // namespace moe_diag
