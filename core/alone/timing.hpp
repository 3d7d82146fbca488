// SPDX-License-Identifier: MIT
#pragma once

#include "core/alone/identity.hpp"

namespace moe_diag {

// Judges what is measured of passes of a lane alone: `seconds`, `tokens_per_second`, `capture_overhead` and
// `device_memory_fraction`, one sample a prompt.
Judgement judge_timing(const AloneParts& parts, std::size_t falsifier);

// The middle of an odd number of values, else the mean of the two in the middle. There is at least one.
double median_of(std::vector<double> values);

}  // namespace moe_diag
