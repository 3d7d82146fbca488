// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "core/api/step.hpp"
#include "core/bus/bus.hpp"
#include "core/contract/contract.hpp"

namespace moe_diag {

// A fault planted in one lane of this run.
struct PlantedFault {
  int lane = 0;
  FaultSpec spec;

  Site site() const { return {spec.stage, spec.layer}; }
};

// Changes the step when the fault is one of the computation: the lane then really computes wrongly.
void edit_step(const PlantedFault& fault, Step& step);

// Changes what the lane holds at the sighting's site when the fault is one of the values; the next steps read it.
// Call it before anybody looks. Returns how many values are other than before.
std::int64_t edit_values(const PlantedFault& fault, Sighting& sighting, Lanes& lanes);

// True when edit_values() changes something at the site.
bool edits_values(const PlantedFault& fault);

}  // namespace moe_diag
