// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <functional>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "core/contract/contract.hpp"

namespace moe_diag {

// Which lanes a metric looks at.
enum class Sides { one, two };

// What a falsifier may say about a metric. Every value of the metric lies in [lowest, highest].
struct MetricInfo {
  Metric metric;
  std::string_view name;
  Sides sides;
  bool larger_is_better;
  bool whole;  // the values are whole numbers
  double lowest, highest;
};

inline constexpr double unbounded = std::numeric_limits<double>::infinity();

// The single source of all that the contract checks about metrics, in the order of the enum.
inline constexpr std::array metric_table{
    MetricInfo{Metric::cosine_similarity, "cosine_similarity", Sides::two, true, false, -1, 1},
    MetricInfo{Metric::rel_l2, "rel_l2", Sides::two, false, false, 0, unbounded},
    MetricInfo{Metric::max_abs_diff, "max_abs_diff", Sides::two, false, false, 0, unbounded},
    MetricInfo{Metric::mismatch_fraction, "mismatch_fraction", Sides::two, false, false, 0, 1},
    MetricInfo{Metric::nonfinite, "nonfinite", Sides::one, false, true, 0, unbounded},
    MetricInfo{Metric::nonfinite_beyond, "nonfinite_beyond", Sides::two, false, true, 0, unbounded},
    MetricInfo{Metric::argmax_agree, "argmax_agree", Sides::two, true, true, 0, 1},
    MetricInfo{Metric::router_sum_error, "router_sum_error", Sides::one, false, false, 0, unbounded},
    MetricInfo{Metric::routing_flips, "routing_flips", Sides::two, false, true, 0, unbounded},
    MetricInfo{Metric::routing_real_flips, "routing_real_flips", Sides::two, false, true, 0, unbounded},
    MetricInfo{Metric::kl, "kl", Sides::two, false, false, 0, unbounded},
    MetricInfo{Metric::topk_overlap, "topk_overlap", Sides::two, true, false, 0, 1},
    MetricInfo{Metric::ulp, "ulp", Sides::two, false, true, 0, unbounded},
    MetricInfo{Metric::noise_ratio, "noise_ratio", Sides::two, false, false, 0, unbounded},
    MetricInfo{Metric::identical, "identical", Sides::one, true, true, 0, 1},
    MetricInfo{Metric::seconds, "seconds", Sides::one, false, false, 0, unbounded},
    MetricInfo{Metric::tokens_per_second, "tokens_per_second", Sides::one, true, false, 0, unbounded},
    MetricInfo{Metric::capture_overhead, "capture_overhead", Sides::one, false, false, 0, unbounded},
    MetricInfo{Metric::device_memory_fraction, "device_memory_fraction", Sides::one, false, false, 0, 1},
};

constexpr const MetricInfo& info(Metric metric) { return metric_table[static_cast<std::size_t>(metric)]; }

std::vector<std::string> metric_names();
// The stages that fit, for messages: "every stage but moe_router_indices".
std::string stages_listed(Stages stages, const std::function<bool(Stage)>& fit);
// The stages at which the metric can be computed, listed as above.
std::string fitting_stages(Metric metric, Stages stages);

// Why the bound is no claim about the metric (it holds or fails whatever is computed, or points the wrong way); empty
// when it is one.
std::string objection(Metric metric, const Bound& bound);

}  // namespace moe_diag
