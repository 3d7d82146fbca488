// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <vector>

#include "core/model/synthetic.hpp"
#include "tests/score/cases.hpp"
#include "tests/support/lockstep.hpp"

namespace moe_diag::score {

// How far faults move the values of their own site: measured beside the judge, from what the lane gives with and
// without the fault. Lanes are `step`, fed by the oracle, and `free`.
class Movement {
 public:
  Movement(const SyntheticSpec& spec, const std::string& numerics, std::vector<std::int32_t> tokens);

  const Model& model() const { return run_.model(); }

  // Of the row, or the expert's slot of a row, that is moved most, in units of the error that is expected at the site:
  // of the step, and in a free lane what the lane is off by without the fault where that is more. Infinite where values
  // become non-finite or other experts are chosen.
  double of(const FaultSpec& fault);

 private:
  double most(Site site, const test::Seen& values, int lane, const test::Seen& beside, int beside_lane);

  const std::vector<std::int32_t> tokens_;
  test::Lockstep run_;
  test::Recorder clean_;
  Program program_;
};

}  // namespace moe_diag::score
