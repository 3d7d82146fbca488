// SPDX-License-Identifier: MIT
#include "core/compare/measure.hpp"

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "core/ops/values.hpp"
#include "tests/support/catch.hpp"

namespace moe_diag::test {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double nan = std::numeric_limits<double>::quiet_NaN();

template <class T>
Tensor tensor(const std::vector<T>& v) {
  constexpr DType type = sizeof(T) == 8 ? DType::f64 : DType::f32;
  return {v.data(), type, {static_cast<std::int64_t>(v.size())}};
}

template <class A, class B>
Measure measure(const std::vector<A>& a, const std::vector<B>& b) {
  Measure m;
  m.add(tensor(a), 0, tensor(b), 0, static_cast<std::int64_t>(a.size()));
  return m;
}

std::vector<double> random_values(std::size_t n, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> normal;
  std::vector<double> v(n);
  for (double& x : v) x = normal(generator);
  return v;
}

}  // namespace

TEST_CASE("metrics equal their definitions") {
  for (std::size_t n : {1U, 7U, 8U, 511U, 512U, 513U, 5000U}) {
    const std::vector<double> a = random_values(n, 1), b = random_values(n, 2);
    long double dot = 0, aa = 0, bb = 0, dd = 0, largest = 0;
    for (std::size_t i = 0; i < n; ++i) {
      dot += static_cast<long double>(a[i]) * b[i];
      aa += static_cast<long double>(a[i]) * a[i];
      bb += static_cast<long double>(b[i]) * b[i];
      const long double d = static_cast<long double>(a[i]) - b[i];
      dd += d * d;
      largest = std::max(largest, std::fabs(d));
    }
    const Measure m = measure(a, b);
    CHECK(m.count == static_cast<std::int64_t>(n));
    CHECK(std::fabs(m.cosine() - static_cast<double>(dot / std::sqrt(aa * bb))) < 1e-14);
    CHECK(std::fabs(m.rel_l2() / static_cast<double>(std::sqrt(dd / bb)) - 1) < 1e-14);
    CHECK(std::fabs(m.max_diff() - static_cast<double>(largest)) < 1e-15);
    const auto at = static_cast<std::size_t>(m.max_index);
    CHECK(std::fabs(a[at] - b[at]) == m.max_diff());
    CHECK(m.a_at_max == a[at]);
  }
}

TEST_CASE("one massive activation: cosine sees nothing, max_abs_diff and rel_l2 do") {
  std::vector<double> b(2048, 0.01), a = b;
  b[408] = -3664;
  a[408] = -3256;
  const Measure m = measure(a, b);
  CHECK(m.cosine() > 0.99);
  CHECK(m.max_diff() == 408);
  CHECK(m.max_index == 408);
  CHECK(m.rel_l2() > 0.1);
}

TEST_CASE("a non-finite value is never small") {
  for (double bad : {nan, infinity, -infinity})
    for (std::size_t at : {0U, 3U, 600U, 999U}) {
      std::vector<double> b(1000, 1.0), a = b;
      a[at] = bad;
      const Measure m = measure(a, b);
      CHECK(std::isnan(m.cosine()));
      CHECK(std::isnan(m.rel_l2()));
      CHECK(std::isnan(m.max_diff()));
      CHECK(m.nonfinite_a == 1);
      CHECK(m.nonfinite_b == 0);
      CHECK(m.nonfinite_new == 1);
      CHECK(m.first_nonfinite_new == static_cast<std::int64_t>(at));
      CHECK(mismatches(tensor(a), 0, tensor(b), 0, 1000, 1e9, 1e9) == 1);
      CHECK(count_nonfinite(tensor(a), 0, 1000) == 1);
    }
}

TEST_CASE("a non-finite value that both sides have is no news, and still no agreement") {
  std::vector<float> a(20, 1.0F), b = a;
  a[5] = b[5] = std::numeric_limits<float>::quiet_NaN();
  const Measure m = measure(a, b);
  CHECK(m.nonfinite_new == 0);
  CHECK(std::isnan(m.rel_l2()));
  CHECK(std::isnan(m.cosine()));
}

TEST_CASE("zero vectors") {
  const std::vector<float> zero(9, 0.0F), one(9, 1.0F);
  CHECK(measure(zero, zero).cosine() == 1);
  CHECK(measure(zero, zero).rel_l2() == 0);
  CHECK(measure(zero, one).cosine() == 0);
  CHECK(measure(zero, one).rel_l2() == 1);
  CHECK(measure(one, zero).cosine() == 0);
  CHECK(measure(one, zero).rel_l2() == infinity);
}

TEST_CASE("float and double lanes are compared in double") {
  const std::vector<float> a = {0.1F, 0.2F};
  const std::vector<double> b = {0.1, 0.2};
  const Measure m = measure(a, b);
  CHECK(m.rel_l2() > 1e-9);
  CHECK(m.rel_l2() < 6e-8);
}

TEST_CASE("a factor is not an angle: cosine is blind to scale, rel_l2 is not") {
  const std::vector<double> b = random_values(256, 3);
  std::vector<double> a = b;
  for (double& x : a) x *= 2;
  CHECK(measure(a, b).cosine() > 1 - 1e-15);
  CHECK(std::fabs(measure(a, b).rel_l2() - 1) < 1e-15);
}

TEST_CASE("mismatches, argmax and sums") {
  const std::vector<double> b = {1, 10, 100, -100};
  const std::vector<double> a = {1.05, 10.05, 100.05, -101.2};
  CHECK(mismatches(tensor(a), 0, tensor(b), 0, 4, 0.01, 0.0) == 2);
  CHECK(mismatches(tensor(a), 0, tensor(b), 0, 4, 0.0, 0.06) == 1);
  CHECK(argmax(tensor(a), 0, 4) == 2);
  CHECK(argmax(tensor(std::vector<double>{3, 5, 5}), 0, 3) == 1);
  CHECK(argmax(tensor(std::vector<double>{3, nan, 5}), 0, 3) == -1);
  CHECK(sum(tensor(b), 1, 2) == 110);
}

}  // namespace moe_diag::test
