// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string_view>

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
  template <class T>
  const T* as() const {
    return static_cast<const T*>(data);
  }
  // Element `i` in the order of memory, whatever its type.
  double value(std::int64_t i) const {
    switch (dtype) {
      case DType::f32: return static_cast<double>(as<float>()[i]);
      case DType::f64: return as<double>()[i];
      case DType::i32: return as<std::int32_t>()[i];
    }
    return 0;
  }
};

}  // namespace moe_diag
