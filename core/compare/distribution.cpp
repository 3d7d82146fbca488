// SPDX-License-Identifier: MIT
#include "core/compare/distribution.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/ops/values.hpp"

namespace moe_diag {
namespace {

constexpr double nan = std::numeric_limits<double>::quiet_NaN();
constexpr double infinity = std::numeric_limits<double>::infinity();

// pb ln(pb / pa) - pb + pa for pa = pb e^t, which is pb (e^t - 1 - t): a sum of such terms has no cancellation, since
// none is negative.
double term(double pa, double pb, double t) {
  constexpr double small = 1e-3;  // the terms left out are below t^5 / 120
  if (std::fabs(t) < small) return pb * t * t * (1.0 / 2 + t * (1.0 / 6 + t * (1.0 / 24)));
  return pa - pb - pb * t;
}

// ln(x / y), near 0 as well, without overflow.
double log_ratio(double x, double y) {
  const double apart = (x - y) / y;
  return std::fabs(apart) < 0.5 ? std::log1p(apart) : std::log(x) - std::log(y);
}

// The logarithm of a softmax's denominator, in one pass.
struct LogSum {
  double largest = -infinity, sum = 0;

  void add(double x) {
    if (x > largest) {
      sum = sum * std::exp(largest - x) + 1;
      largest = x;
    } else {
      sum += std::exp(x - largest);
    }
  }
  double value() const { return largest + std::log(sum); }
};

struct Ranked {
  double value;
  std::int64_t index;
};
bool before(const Ranked& x, const Ranked& y) { return x.value != y.value ? x.value > y.value : x.index < y.index; }

// Indices of the k largest, ascending; empty when there is a NaN.
std::vector<std::int64_t> largest(const Tensor& t, std::int64_t at, std::int64_t n, int k) {
  return with_values(t, at, [&](const auto* p) {
    std::vector<Ranked> heap;  // its first is the one to give way
    std::vector<std::int64_t> indices;
    for (std::int64_t i = 0; i < n; ++i) {
      const Ranked here{static_cast<double>(p[i]), i};
      if (std::isnan(here.value)) return indices;
      if (static_cast<int>(heap.size()) == k) {
        if (!before(here, heap.front())) continue;
        std::pop_heap(heap.begin(), heap.end(), before);
        heap.pop_back();
      }
      heap.push_back(here);
      std::push_heap(heap.begin(), heap.end(), before);
    }
    for (const Ranked& r : heap) indices.push_back(r.index);
    std::sort(indices.begin(), indices.end());
    return indices;
  });
}

}  // namespace

double kl_of_logits(const Tensor& a, std::int64_t at_a, const Tensor& b, std::int64_t at_b, std::int64_t n) {
  return with_pair(a, at_a, b, at_b, [&](const auto* pa, const auto* pb) {
    LogSum sum_a, sum_b;
    for (std::int64_t i = 0; i < n; ++i) {
      const double x = static_cast<double>(pa[i]), y = static_cast<double>(pb[i]);
      if (!is_finite(x) || !is_finite(y)) return nan;
      sum_a.add(x);
      sum_b.add(y);
    }
    const double log_a = sum_a.value(), log_b = sum_b.value(), apart = log_a - log_b;
    double kl = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      const double x = static_cast<double>(pa[i]), y = static_cast<double>(pb[i]);
      kl += term(std::exp(x - log_a), std::exp(y - log_b), x - y - apart);
    }
    return kl;
  });
}

double kl_of_probs(const Tensor& a, std::int64_t at_a, const Tensor& b, std::int64_t at_b, std::int64_t n) {
  return with_pair(a, at_a, b, at_b, [&](const auto* pa, const auto* pb) {
    double kl = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      const double x = static_cast<double>(pa[i]), y = static_cast<double>(pb[i]);
      if (!is_finite(x) || !is_finite(y) || x < 0 || y < 0) return nan;
      kl += y == 0 ? x : x == 0 ? infinity : term(x, y, log_ratio(x, y));
    }
    return kl;
  });
}

double topk_overlap(const Tensor& a, std::int64_t at_a, const Tensor& b, std::int64_t at_b, std::int64_t n, int k) {
  const std::vector<std::int64_t> of_a = largest(a, at_a, n, k), of_b = largest(b, at_b, n, k);
  if (of_a.empty() || of_b.empty()) return nan;
  const auto common = std::count_if(of_b.begin(), of_b.end(),
                                    [&](std::int64_t i) { return std::binary_search(of_a.begin(), of_a.end(), i); });
  return static_cast<double>(common) / static_cast<double>(of_b.size());
}

}  // namespace moe_diag
