// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <string>
#include <string_view>
#include <type_traits>

#include "core/api/blocks.hpp"
#include "core/api/error.hpp"

namespace moe_diag {

enum class DType : std::uint8_t { f32, f64, i32, f16, bf16 };

constexpr std::size_t size_of(DType dtype) {
  return dtype == DType::f64 ? 8 : dtype == DType::f16 || dtype == DType::bf16 ? 2 : 4;
}

constexpr std::string_view name_of(DType dtype) {
  switch (dtype) {
    case DType::f32: return "f32";
    case DType::f64: return "f64";
    case DType::i32: return "i32";
    case DType::f16: return "f16";
    case DType::bf16: return "bf16";
  }
  return "unknown";
}

// The nearest value of a type with `digits` bits of significand, whose smallest normal number is 2^lowest; ties to
// even. Values beyond its range stay beyond it.
inline double rounded_to(double x, int digits, int lowest) {
  if (x == 0 || !std::isfinite(x)) return x;
  const double step = std::ldexp(1.0, std::max(std::ilogb(x), lowest) - (digits - 1));
  return std::nearbyint(x / step) * step;
}

// A value of 16 bits as it lies in memory: IEEE 754 half precision.
struct F16 {
  std::uint16_t bits = 0;

  F16() = default;
  explicit F16(double x) {
    const double rounded = rounded_to(x, 11, -14), size = std::fabs(rounded);
    const std::uint32_t sign = std::signbit(x) ? 0x8000 : 0;
    std::uint32_t magnitude = 0x7E00;  // NaN
    if (size > 65504) {
      magnitude = 0x7C00;  // infinity
    } else if (size >= 0x1p-14) {
      const auto single = static_cast<float>(size);
      std::uint32_t wide;
      std::memcpy(&wide, &single, sizeof wide);
      magnitude = (wide >> 13) - (112u << 10);
    } else if (size < 0x1p-14) {
      magnitude = static_cast<std::uint32_t>(size * 0x1p24);
    }
    bits = static_cast<std::uint16_t>(sign | magnitude);
  }
  operator float() const { return float_from_f16(bits); }
};

// The upper half of an IEEE 754 single.
struct BF16 {
  std::uint16_t bits = 0;

  BF16() = default;
  explicit BF16(double x) {
    const auto single = static_cast<float>(rounded_to(x, 8, -126));
    std::uint32_t wide;
    std::memcpy(&wide, &single, sizeof wide);
    bits = static_cast<std::uint16_t>(std::isnan(x) ? wide >> 16 | 0x40 : wide >> 16);
  }
  operator float() const { return float_from_bf16(bits); }
};
static_assert(sizeof(F16) == 2 && sizeof(BF16) == 2);

// The element type that a C++ type reads.
template <class T>
constexpr DType dtype_of() {
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, double> || std::is_same_v<T, std::int32_t> ||
                    std::is_same_v<T, F16> || std::is_same_v<T, BF16>,
                "values are float, double, F16, BF16 or std::int32_t; std::byte reads the memory of any of them");
  if constexpr (std::is_same_v<T, double>) return DType::f64;
  if constexpr (std::is_same_v<T, F16>) return DType::f16;
  if constexpr (std::is_same_v<T, BF16>) return DType::bf16;
  return std::is_same_v<T, float> ? DType::f32 : DType::i32;
}

constexpr std::string_view cpp_name_of(DType dtype) {
  switch (dtype) {
    case DType::f32: return "float";
    case DType::f64: return "double";
    case DType::i32: return "std::int32_t";
    case DType::f16: return "F16";
    case DType::bf16: return "BF16";
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
  // The array: float for f32, double for f64, std::int32_t for i32, F16 for f16, BF16 for bf16; std::byte for the
  // memory of any of them. Another type than the tensor has throws Error, so ask once a tensor, not once an element.
  // Null when the tensor is.
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
      case DType::f16: return static_cast<double>(float{static_cast<const F16*>(data)[i]});
      case DType::bf16: return static_cast<double>(float{static_cast<const BF16*>(data)[i]});
    }
    return 0;
  }
};

}  // namespace moe_diag
