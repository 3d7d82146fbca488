// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <limits>
#include <string_view>

#include "core/api/stage.hpp"

namespace moe_diag {

enum class Metric {
  cosine_similarity,
  rel_l2,
  max_abs_diff,
  mismatch_fraction,
  nonfinite,
  nonfinite_beyond,
  argmax_agree,
  router_sum_error,
  routing_flips,
  routing_real_flips,
  kl,
  topk_overlap,
  ulp,
  noise_ratio,
  identical,
  seconds,
  tokens_per_second,
  capture_overhead,
  device_memory_fraction,
};

// Which lanes a metric looks at.
enum class Sides { one, two };

// The stages that a metric can be computed at.
namespace metric_at {

constexpr bool every(Stage) { return true; }
constexpr bool none(Stage) { return false; }
constexpr bool values(Stage stage) { return payload_of(stage) == Payload::values; }
// Rows of one value are left out: it may be near 0, and its relative error says nothing.
constexpr bool rows(Stage stage) { return values(stage) && info(stage).row[0].symbol != "1"; }
constexpr bool choice(Stage stage) { return is(stage, Role::choice); }
constexpr bool sums_to_one(Stage stage) { return info(stage).sums_to_one; }
constexpr bool distribution(Stage stage) {
  return is(stage, Role::logits) || is(stage, Role::router_scores) || is(stage, Role::router_probs);
}

}  // namespace metric_at

// The claims that a falsifier may make about a metric. Every value of the metric lies in [lowest, highest].
struct MetricInfo {
  Metric metric;
  std::string_view name;
  bool (*fits)(Stage);
  Sides sides;
  bool larger_is_better;
  bool whole;  // the values are whole numbers
  double lowest, highest;
};

inline constexpr double unbounded = std::numeric_limits<double>::infinity();

// The single source of all that the contract checks about metrics, in the order of the enum.
inline constexpr std::array metric_table{
    MetricInfo{Metric::cosine_similarity, "cosine_similarity", metric_at::rows, Sides::two, true, false, -1, 1},
    MetricInfo{Metric::rel_l2, "rel_l2", metric_at::rows, Sides::two, false, false, 0, unbounded},
    MetricInfo{Metric::max_abs_diff, "max_abs_diff", metric_at::values, Sides::two, false, false, 0, unbounded},
    MetricInfo{Metric::mismatch_fraction, "mismatch_fraction", metric_at::values, Sides::two, false, false, 0, 1},
    MetricInfo{Metric::nonfinite, "nonfinite", metric_at::values, Sides::one, false, true, 0, unbounded},
    MetricInfo{Metric::nonfinite_beyond, "nonfinite_beyond", metric_at::values, Sides::two, false, true, 0, unbounded},
    MetricInfo{Metric::argmax_agree, "argmax_agree", metric_at::distribution, Sides::two, true, true, 0, 1},
    MetricInfo{Metric::router_sum_error, "router_sum_error", metric_at::sums_to_one, Sides::one, false, false, 0,
               unbounded},
    MetricInfo{Metric::routing_flips, "routing_flips", metric_at::choice, Sides::two, false, true, 0, unbounded},
    MetricInfo{Metric::routing_real_flips, "routing_real_flips", metric_at::choice, Sides::two, false, true, 0,
               unbounded},
    MetricInfo{Metric::kl, "kl", metric_at::distribution, Sides::two, false, false, 0, unbounded},
    MetricInfo{Metric::topk_overlap, "topk_overlap", metric_at::distribution, Sides::two, true, false, 0, 1},
    MetricInfo{Metric::ulp, "ulp", metric_at::values, Sides::two, false, true, 0, unbounded},
    MetricInfo{Metric::noise_ratio, "noise_ratio", metric_at::values, Sides::two, false, false, 0, unbounded},
    MetricInfo{Metric::identical, "identical", metric_at::every, Sides::one, true, true, 0, 1},
    MetricInfo{Metric::seconds, "seconds", metric_at::none, Sides::one, false, false, 0, unbounded},
    MetricInfo{Metric::tokens_per_second, "tokens_per_second", metric_at::none, Sides::one, true, false, 0, unbounded},
    MetricInfo{Metric::capture_overhead, "capture_overhead", metric_at::none, Sides::one, false, false, 0, unbounded},
    MetricInfo{Metric::device_memory_fraction, "device_memory_fraction", metric_at::none, Sides::one, false, false, 0,
               1},
};

constexpr const MetricInfo& info(Metric metric) { return metric_table[static_cast<std::size_t>(metric)]; }

}  // namespace moe_diag
