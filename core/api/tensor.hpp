// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <type_traits>

#include "core/api/error.hpp"

namespace moe_diag {

enum class DType : std::uint8_t { f32, f64, i32 };

constexpr std::size_t size_of(DType dtype) { return dtype == DType::f64 ? 8 : 4; }

constexpr std::string_view name_of(DType dtype) {
  switch (dtype) {
    case DType::f32: return "f32";
    case DType::f64: return "f64";
    case DType::i32: return "i32";
  }
  return "unknown";
}

// The element type that a C++ type reads.
template <class T>
constexpr DType dtype_of() {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, double> || std::is_same_v<T, std::int32_t>,
                "values are float, double or std::int32_t; std::byte reads the memory of any of them");
  if constexpr (std::is_same_v<T, double>) return DType::f64;
  return std::is_same_v<T, float> ? DType::f32 : DType::i32;
}

constexpr std::string_view cpp_name_of(DType dtype) {
  switch (dtype) {
    case DType::f32: return "float";
    case DType::f64: return "double";
    case DType::i32: return "std::int32_t";
  }
  return "unknown";
}

[[noreturn]] __attribute__((noinline, cold)) inline void refuse_element_type(DType found, DType wanted) {
  throw Error(ErrorKind::environment, "as<" + std::string(cpp_name_of(wanted)) + ">() wants a tensor of " +
                                          std::string(name_of(wanted)) + ", found " + std::string(name_of(found)) +
                                          ": ask its dtype and use as<" + std::string(cpp_name_of(found)) +
                                          ">(), or value(i), which reads every type");
}

// Up to four dimensions, slowest first.
struct Shape {
  std::array<std::int64_t, 4> dims{};
  int rank = 0;

  constexpr Shape() = default;
  constexpr Shape(std::initializer_list<std::int64_t> list) {
    for (std::int64_t d : list) dims[static_cast<std::size_t>(rank++)] = d;
  }

  constexpr std::int64_t operator[](int i) const { return dims[static_cast<std::size_t>(i)]; }
  constexpr std::int64_t count() const {
    std::int64_t n = rank == 0 ? 0 : 1;
    for (int i = 0; i < rank; ++i) n *= (*this)[i];
    return n;
  }
  // Elements of one row: all dimensions but the first.
  constexpr std::int64_t row() const { return rank == 0 || dims[0] == 0 ? 0 : count() / dims[0]; }

  friend constexpr bool operator==(const Shape&, const Shape&) = default;
};

// A view of host memory: row-major, contiguous, position first. Owns nothing.
struct Tensor {
  const void* data = nullptr;
  DType dtype = DType::f32;
  Shape shape;

  explicit operator bool() const { return data != nullptr; }
  std::size_t bytes() const { return static_cast<std::size_t>(shape.count()) * size_of(dtype); }
  // The array: float for f32, double for f64, std::int32_t for i32, std::byte for the memory of any of them. Another
  // type than the tensor has throws Error, so ask once a tensor, not once an element. Null when the tensor is.
  template <class T>
  const T* as() const {
    if constexpr (!std::is_same_v<T, std::byte>)
      if (data && dtype != dtype_of<T>()) refuse_element_type(dtype, dtype_of<T>());
    return static_cast<const T*>(data);
  }
  // Element `i` in the order of memory, whatever its type.
  double value(std::int64_t i) const {
    switch (dtype) {
      case DType::f32: return static_cast<double>(static_cast<const float*>(data)[i]);
      case DType::f64: return static_cast<const double*>(data)[i];
      case DType::i32: return static_cast<const std::int32_t*>(data)[i];
    }
    return 0;
  }
};

}  // namespace moe_diag
