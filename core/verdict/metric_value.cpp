// SPDX-License-Identifier: MIT
#include "core/verdict/metric_value.hpp"

#include <cmath>
#include <limits>

#include "core/compare/distribution.hpp"
#include "core/ops/values.hpp"

namespace moe_diag {
namespace {

constexpr double nan = std::numeric_limits<double>::quiet_NaN();

}  // namespace

double value_of_segments(const FalsifierSpec& spec, const Pair& pair, const SampleSegments& sample, const Measure& m) {
  switch (spec.metric) {
    case Metric::cosine_similarity: return m.cosine();
    case Metric::rel_l2: return m.rel_l2();
    case Metric::max_abs_diff: return m.max_diff();
    case Metric::nonfinite_beyond: return static_cast<double>(m.nonfinite_a);
    case Metric::mismatch_fraction: {
      std::int64_t wrong = 0;
      for (const Segment& g : sample.segments) wrong += mismatches(pair.a, g.a, pair.b, g.b, g.n, spec.rtol, spec.atol);
      return static_cast<double>(wrong) / static_cast<double>(m.count);
    }
    case Metric::ulp: {
      double largest = 0;
      for (const Segment& g : sample.segments) {
        const double here = ulp_distance(pair.a, g.a, pair.b, g.b, g.n);
        if (!(here <= largest)) largest = here;
        if (std::isnan(largest)) break;
      }
      return largest;
    }
    default: return nan;
  }
}

std::optional<double> value_of_row(const FalsifierSpec& spec, const Pair& pair, int row) {
  const std::int64_t size = pair.a.shape.row(), at = row * size;
  switch (spec.metric) {
    case Metric::routing_flips: return routing_flips(pair.a, pair.b, row, pair.experts);
    case Metric::argmax_agree: {
      const std::int64_t a = argmax(pair.a, at, size), b = argmax(pair.b, at, size);
      return a < 0 || b < 0 ? nan : a == b;
    }
    case Metric::topk_overlap: return topk_overlap(pair.a, at, pair.b, at, size, spec.k);
    case Metric::kl:
      return is(pair.site.stage, Role::router_probs) ? kl_of_probs(pair.a, at, pair.b, at, size)
                                                     : kl_of_logits(pair.a, at, pair.b, at, size);
    default: return std::nullopt;
  }
}

}  // namespace moe_diag
