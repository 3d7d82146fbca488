// SPDX-License-Identifier: MIT
#include "core/verdict/divergence.hpp"

#include <algorithm>
#include <cstddef>

namespace moe_diag {

std::string_view name_of(Cause cause) {
  switch (cause) {
    case Cause::unexplained: return "unexplained";
    case Cause::oracle_not_finite: return "oracle_not_finite";
    case Cause::nonfinite_origin: return "nonfinite_origin";
    case Cause::not_tried: return "not_tried";
    case Cause::routing_tie: return "routing_tie";
    case Cause::routing_drift: return "routing_drift";
    case Cause::routing_real: return "routing_real";
    case Cause::nonfinite_inherited: return "nonfinite_inherited";
    case Cause::inherited: return "inherited";
    case Cause::drift: return "drift";
    case Cause::numerics: return "numerics";
    case Cause::recording: return "recording";
    case Cause::other_weights: return "other_weights";
    case Cause::reference: return "reference";
    default: break;
  }
  const int of_step = static_cast<int>(cause) - static_cast<int>(Cause::uniform_weights);
  return name_of(static_cast<StepCause>(of_step + static_cast<int>(StepCause::uniform_weights)));
}

Cause cause_of(StepCause cause) {
  if (cause == StepCause::none) return Cause::unexplained;
  const int named = static_cast<int>(cause) - static_cast<int>(StepCause::uniform_weights);
  return static_cast<Cause>(named + static_cast<int>(Cause::uniform_weights));
}

static_assert(static_cast<int>(Cause::plain_operator) - static_cast<int>(Cause::uniform_weights) ==
                  static_cast<int>(StepCause::plain_operator) - static_cast<int>(StepCause::uniform_weights),
              "the causes of steps stand in the same order as explain_step() has them");

int LayerCoverage::run() const {
  return static_cast<int>(std::count_if(rows.begin(), rows.end(), [](std::int64_t n) { return n > 0; }));
}

}  // namespace moe_diag
