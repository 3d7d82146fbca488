// SPDX-License-Identifier: MIT
#pragma once

#include <optional>

#include "core/compare/measure.hpp"
#include "core/compare/samples.hpp"
#include "core/contract/contract.hpp"

namespace moe_diag {

// Where a metric's name becomes a call of its arithmetic in core/compare.

// Of the metrics that compare a whole row; none for the others.
std::optional<double> value_of_row(const FalsifierSpec& spec, const Pair& pair, int row);

// Of the metrics that compare values, a whole row's or one expert's; `measure` is of the same segments. NaN for the
// others: those that need more than two tensors are computed where their samples are made.
double value_of_segments(const FalsifierSpec& spec, const Pair& pair, const SampleSegments& sample,
                         const Measure& measure);

// True for the metrics that compare the experts that were chosen.
constexpr bool is_of_routing(Metric metric) {
  return metric == Metric::routing_flips || metric == Metric::routing_real_flips;
}

}  // namespace moe_diag
