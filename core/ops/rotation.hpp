// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>

#include "core/ops/rounding.hpp"
#include "core/ops/values.hpp"

namespace moe_diag::host {

// Each block of the values, a power of two, multiplied by the Hadamard matrix in Sylvester's order over the root of its
// size. That matrix is its own inverse. Computed in log2(block) rounds of sums and differences, neighbours first, and
// divided at the end.
Values rotated(std::span<const double> x, std::int64_t block);

// Keys or values as a cache keeps them: rotated in blocks, rounded, and rotated back. Products with them are those of
// rotated queries, or with sums that are rotated back. Block 0: not rotated.
Values rounded_when_rotated(std::span<const double> x, Rounding rounding, std::int64_t block);

}  // namespace moe_diag::host
