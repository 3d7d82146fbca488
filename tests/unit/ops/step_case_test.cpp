// SPDX-License-Identifier: MIT
#include "core/ops/step_case.hpp"

#include <cmath>
#include <limits>
#include <vector>

#include "tests/support/catch.hpp"

namespace moe_diag {

TEST_CASE("values that overflowed, beside the oracle's own rounded to the lane's type, are evidence of nothing else") {
  const std::vector<double> truth = {0.1, -2.5, 1e39, 3};
  std::vector<float> lane(truth.begin(), truth.end());
  REQUIRE(std::isinf(lane[2]));
  StepCase c;
  c.a = {lane.data(), DType::f32, {1, 4}};
  c.b = {truth.data(), DType::f64, {1, 4}};
  StepUnit unit;
  unit.segments = {{0, 0, 4}};
  unit.size = 4;
  CHECK_FALSE(differs_where_finite(c, {&unit}));
  lane[3] = std::nextafter(3.0f, 4.0f);
  CHECK(differs_where_finite(c, {&unit}));
  lane[3] = std::numeric_limits<float>::quiet_NaN();
  CHECK_FALSE(differs_where_finite(c, {&unit}));
  std::vector<double> wide = truth;
  c.a = {wide.data(), DType::f64, {1, 4}};
  CHECK_FALSE(differs_where_finite(c, {&unit}));
  wide[0] = static_cast<double>(0.1f);
  CHECK(differs_where_finite(c, {&unit}));
}

}  // namespace moe_diag
