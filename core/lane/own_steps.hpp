// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <span>

#include "core/api/backend.hpp"

namespace moe_diag {

// How many of the first steps the lane's backend computes itself: as many as its supports() says, but none from the
// first named variant on. Throws Error(environment) when supports() says more than there are.
std::size_t own_steps(const Lane& lane, std::span<const Step> steps);

}  // namespace moe_diag
