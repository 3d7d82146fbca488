// SPDX-License-Identifier: MIT
#pragma once

// Arrays as numpy reads them.

#include <bit>
#include <concepts>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

#include "core/api/output_file.hpp"
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
    case DType::f16: return "<f2";
    case DType::bf16: return "<V2";  // numpy has no such type: two bytes, as ml_dtypes writes them
  }
  return "";
}

// The same for types of C++: float, double, and whole numbers of 8 to 64 bits.
template <class T>
constexpr std::string_view npy_type() {
  if constexpr (std::same_as<T, float>) return "<f4";
  if constexpr (std::same_as<T, double>) return "<f8";
  if constexpr (std::same_as<T, std::int8_t>) return "|i1";
  if constexpr (std::same_as<T, std::uint8_t>) return "|u1";
  if constexpr (std::same_as<T, std::int16_t>) return "<i2";
  if constexpr (std::same_as<T, std::uint16_t>) return "<u2";
  if constexpr (std::same_as<T, std::int32_t>) return "<i4";
  if constexpr (std::same_as<T, std::uint32_t>) return "<u4";
  if constexpr (std::same_as<T, std::int64_t>) return "<i8";
  if constexpr (std::same_as<T, std::uint64_t>) return "<u8";
  return "";
}
template <class T>
concept NpyValue = !npy_type<T>().empty();

// Version 1.0 of numpy.lib.format: magic, version, length of the rest, a Python dictionary padded with blanks.
inline std::string npy_header(std::string_view type, const Shape& shape) {
  std::string dict = "{'descr': '" + std::string(type) + "', 'fortran_order': False, 'shape': (";
  for (int i = 0; i < shape.rank; ++i) dict += std::to_string(shape[i]) + (i + 1 < shape.rank ? ", " : "");
  dict += shape.rank == 1 ? ",), }" : "), }";

  std::string header("\x93NUMPY\x01\x00", 8);
  const std::size_t rest = npy_header_bytes - header.size() - 2;
  if (dict.size() + 1 > rest) throw std::length_error("a shape does not fit the .npy header: " + dict);
  header += static_cast<char>(rest & 0xFF);
  header += static_cast<char>(rest >> 8);
  return header + dict + std::string(rest - dict.size() - 1, ' ') + '\n';
}

// Writes an array of this shape, slowest dimension first, whole or not at all; replaces the file that is there. For
// sinks that keep arrays of their own and write them in close().
template <NpyValue T>
void write_npy(const std::string& path, std::span<const T> values, const Shape& shape) {
  if (shape.rank == 0 || shape.count() != static_cast<std::int64_t>(values.size()))
    throw std::length_error(path + ": " + std::to_string(values.size()) + " values, the shape has " +
                            std::to_string(shape.count()));
  const auto bytes = std::as_bytes(values);
  write_whole_file(path,
                   {npy_header(npy_type<T>(), shape), {reinterpret_cast<const char*>(bytes.data()), bytes.size()}});
}

}  // namespace moe_diag
