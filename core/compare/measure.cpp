// SPDX-License-Identifier: MIT
#include "core/compare/measure.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "core/ops/values.hpp"

namespace moe_diag {
namespace {

constexpr double nan = std::numeric_limits<double>::quiet_NaN();
constexpr std::int64_t block = 512;  // elements between two looks at the maximum
constexpr int width = 8;             // partial sums, for the compiler to put into vectors

struct Sums {
  std::array<double, width> dot{}, aa{}, bb{}, dd{}, largest{};

  template <class A, class B>
  void add(int j, A a, B b) {
    const auto i = static_cast<std::size_t>(j);
    const double x = static_cast<double>(a), y = static_cast<double>(b), d = x - y, abs = std::fabs(d);
    dot[i] += x * y;
    aa[i] += x * x;
    bb[i] += y * y;
    dd[i] += d * d;
    largest[i] = abs > largest[i] ? abs : largest[i];
  }
};

double total(const std::array<double, width>& s) {
  double t = 0;
  for (double v : s) t += v;
  return t;
}

template <class A, class B>
Sums sums_of(const A* a, const B* b, std::int64_t n) {
  Sums s;
  std::int64_t k = 0;
  for (; k + width <= n; k += width)
    for (int j = 0; j < width; ++j) s.add(j, a[k + j], b[k + j]);
  for (int j = 0; k < n; ++k, ++j) s.add(j, a[k], b[k]);
  return s;
}

// The slow path of a block that holds a non-finite value: its finite pairs, and the counts.
template <class A, class B>
Sums finite_sums_of(Measure& m, const A* a, const B* b, std::int64_t n) {
  Sums s;
  for (std::int64_t k = 0; k < n; ++k) {
    const bool fa = is_finite(static_cast<double>(a[k])), fb = is_finite(static_cast<double>(b[k]));
    m.nonfinite_a += !fa;
    m.nonfinite_b += !fb;
    if (!fa && fb) {
      if (m.nonfinite_new == 0) m.first_nonfinite_new = m.count + k;
      ++m.nonfinite_new;
    }
    if (fa && fb) s.add(0, a[k], b[k]);
  }
  return s;
}

template <class A, class B>
void add_block(Measure& m, const A* a, const B* b, std::int64_t n) {
  Sums s = sums_of(a, b, n);
  if (!is_finite(total(s.aa) + total(s.bb))) s = finite_sums_of(m, a, b, n);
  m.dot += total(s.dot);
  m.squares_a += total(s.aa);
  m.squares_b += total(s.bb);
  m.squares_diff += total(s.dd);
  const double largest = *std::max_element(s.largest.begin(), s.largest.end());
  if (largest > m.max_abs || m.max_index < 0) {
    for (std::int64_t k = 0; k < n; ++k)
      if (std::fabs(static_cast<double>(a[k]) - static_cast<double>(b[k])) == largest) {
        m.max_abs = largest;
        m.max_index = m.count + k;
        m.a_at_max = static_cast<double>(a[k]);
        m.b_at_max = static_cast<double>(b[k]);
        break;
      }
  }
  m.count += n;
}

// The finite floats counted upwards from the lowest, 0 standing for both zeros.
std::int64_t rank_of(float x) {
  std::uint32_t bits = 0;
  std::memcpy(&bits, &x, sizeof bits);
  const auto magnitude = static_cast<std::int64_t>(bits & 0x7FFFFFFFU);
  return bits >> 31 != 0 ? -magnitude : magnitude;
}

}  // namespace

void Measure::add(const Tensor& a, std::int64_t at_a, const Tensor& b, std::int64_t at_b, std::int64_t n) {
  with_pair(a, at_a, b, at_b, [&](const auto* pa, const auto* pb) {
    for (std::int64_t k = 0; k < n; k += block) add_block(*this, pa + k, pb + k, std::min(block, n - k));
  });
}

double Measure::cosine() const {
  if (!finite() || count == 0) return nan;
  if (squares_a == 0 && squares_b == 0) return 1;
  if (squares_a == 0 || squares_b == 0) return 0;
  return dot / (std::sqrt(squares_a) * std::sqrt(squares_b));
}

double Measure::rel_l2() const {
  if (!finite() || count == 0) return nan;
  if (squares_diff == 0) return 0;
  return std::sqrt(squares_diff) / std::sqrt(squares_b);
}

double Measure::max_diff() const { return finite() && count > 0 ? max_abs : nan; }

std::int64_t mismatches(const Tensor& a, std::int64_t at_a, const Tensor& b, std::int64_t at_b, std::int64_t n,
                        double rtol, double atol) {
  return with_pair(a, at_a, b, at_b, [&](const auto* pa, const auto* pb) {
    std::int64_t count = 0;
    for (std::int64_t k = 0; k < n; ++k) {
      const double x = static_cast<double>(pa[k]), y = static_cast<double>(pb[k]);
      const bool close = std::fabs(x - y) <= atol + rtol * std::fabs(y);
      count += !(close && is_finite(x) && is_finite(y));
    }
    return count;
  });
}

double ulp_distance(const Tensor& a, std::int64_t at_a, const Tensor& b, std::int64_t at_b, std::int64_t n) {
  return with_pair(a, at_a, b, at_b, [&](const auto* pa, const auto* pb) {
    std::int64_t largest = 0;
    for (std::int64_t k = 0; k < n; ++k) {
      const float x = static_cast<float>(pa[k]), y = static_cast<float>(pb[k]);
      if (!is_finite(x) || !is_finite(y)) return nan;
      largest = std::max(largest, std::abs(rank_of(x) - rank_of(y)));
    }
    return static_cast<double>(largest);
  });
}

double noise_ratio(double error, double floor) { return error == 0 ? 0 : error / floor; }

std::int64_t count_nonfinite(const Tensor& a, std::int64_t at, std::int64_t n) {
  return with_values(a, at, [&](const auto* p) {
    std::int64_t count = 0;
    for (std::int64_t k = 0; k < n; ++k) count += !is_finite(static_cast<double>(p[k]));
    return count;
  });
}

double sum(const Tensor& a, std::int64_t at, std::int64_t n) {
  return with_values(a, at, [&](const auto* p) {
    double t = 0;
    for (std::int64_t k = 0; k < n; ++k) t += static_cast<double>(p[k]);
    return t;
  });
}

}  // namespace moe_diag
