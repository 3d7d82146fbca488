// SPDX-License-Identifier: MIT
#include "core/api/tensor.hpp"

#include <cstddef>
#include <cstdint>

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

}  // namespace
}  // namespace moe_diag
