// SPDX-License-Identifier: MIT
#include "core/lane/own_steps.hpp"

#include <fmt/format.h>

#include "core/api/error.hpp"
#include "core/ops/variant.hpp"

namespace moe_diag {

std::size_t own_steps(const Lane& lane, std::span<const Step> steps) {
  const std::span<const Step> asked = steps.first(before_variant(steps));
  if (asked.empty()) return 0;
  const std::size_t own = lane.supports(asked);
  if (own > asked.size())
    throw Error(ErrorKind::environment,
                fmt::format("supports: {} of {} steps from {} on", own, asked.size(), name_of(asked.front().out[0])));
  return own;
}

}  // namespace moe_diag
