// SPDX-License-Identifier: MIT
#include "core/api/tensor.hpp"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "tests/support/catch.hpp"

namespace moe_diag {
namespace {

TEST_CASE("a tensor gives its array as its own type, its memory, and no other type") {
  const double wide[] = {1.5, -2};
  const float narrow[] = {1.5f, -2};
  const std::int32_t ids[] = {7, 9};
  const Tensor f64{wide, DType::f64, {2}}, f32{narrow, DType::f32, {2}}, i32{ids, DType::i32, {2}};

  CHECK(f64.as<double>() == wide);
  CHECK(f32.as<float>() == narrow);
  CHECK(i32.as<std::int32_t>() == ids);
  for (const Tensor& tensor : {f64, f32, i32}) CHECK(tensor.as<std::byte>() == tensor.data);

  CHECK_THROWS_WITH(f64.as<float>(),
                    "as<float>() wants a tensor of f32, found f64: ask its dtype and use as<double>(), or value(i), "
                    "which reads every type");
  CHECK_THROWS_WITH(f64.as<std::int32_t>(),
                    "as<std::int32_t>() wants a tensor of i32, found f64: ask its dtype and use as<double>(), or "
                    "value(i), which reads every type");
  CHECK_THROWS_AS(f32.as<double>(), Error);
  CHECK_THROWS_AS(f32.as<std::int32_t>(), Error);
  CHECK_THROWS_AS(i32.as<float>(), Error);
  CHECK_THROWS_AS(i32.as<double>(), Error);

  CHECK(Tensor{}.as<double>() == nullptr);  // of none there is nothing to misread
  CHECK(f64.value(1) == -2);
  CHECK(f32.value(0) == 1.5);
  CHECK(i32.value(1) == 9);
}

// All values of a type of 16 bits, and what lies between neighbours.
template <class T>
void check_16_bits(std::uint16_t largest) {
  const auto of_bits = [](std::uint16_t bits) {
    T value;
    value.bits = bits;
    return value;
  };
  for (std::uint16_t bits = 0; bits <= largest; ++bits) {
    const double value = static_cast<double>(float{of_bits(bits)});
    REQUIRE(T(value).bits == bits);
    REQUIRE(T(-value).bits == (bits | 0x8000));
    if (bits == largest) continue;
    const auto above = static_cast<std::uint16_t>(bits + 1);
    const double next = static_cast<double>(float{of_bits(above)}), between = (value + next) / 2;
    REQUIRE(T(between).bits == (bits % 2 == 0 ? bits : above));
    REQUIRE(T(std::nextafter(between, 0)).bits == bits);
    REQUIRE(T(std::nextafter(between, next)).bits == above);
  }
  const double last = static_cast<double>(float{of_bits(largest)});
  const double below = static_cast<double>(float{of_bits(static_cast<std::uint16_t>(largest - 1))});
  REQUIRE(T(last + (last - below) / 2).bits == largest + 1);  // infinity
  REQUIRE(T(std::nextafter(last + (last - below) / 2, 0)).bits == largest);
  REQUIRE(std::isinf(float{T(std::numeric_limits<double>::infinity())}));
  REQUIRE(std::isnan(float{T(std::numeric_limits<double>::quiet_NaN())}));
}

TEST_CASE("values are rounded once to 16 bits: to the nearest, ties to even, beyond the largest to infinity") {
  check_16_bits<F16>(0x7BFF);
  check_16_bits<BF16>(0x7F7F);
}

TEST_CASE("a tensor of 16 bits gives its array as its own type, and each value") {
  const F16 halves[] = {F16(1.5), F16(-2)};
  const BF16 upper[] = {BF16(1.5), BF16(-2)};
  const Tensor f16{halves, DType::f16, {2}}, bf16{upper, DType::bf16, {2}};
  CHECK(f16.as<F16>() == halves);
  CHECK(bf16.as<BF16>() == upper);
  CHECK(f16.bytes() == 4);
  CHECK(bf16.bytes() == 4);
  for (const Tensor& tensor : {f16, bf16}) {
    CHECK(tensor.value(0) == 1.5);
    CHECK(tensor.value(1) == -2);
    CHECK_THROWS_AS(tensor.as<float>(), Error);
  }
  CHECK_THROWS_WITH(f16.as<BF16>(),
                    "as<BF16>() wants a tensor of bf16, found f16: ask its dtype and use as<F16>(), or value(i), which "
                    "reads every type");
}

}  // namespace
}  // namespace moe_diag
