// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <vector>

#include "core/model/synthetic.hpp"
#include "tests/score/cases.hpp"
#include "tests/support/lockstep.hpp"

namespace moe_diag::score {

// How far faults move the values of their own site, in a lane fed by the oracle: measured beside the judge, from what
// the lane gives with and without the fault.
class Movement {
 public:
  Movement(const SyntheticSpec& spec, const std::string& numerics, std::vector<std::int32_t> tokens);

  const Model& model() const { return run_.model(); }

  // Of the row, or the expert's slot of a row, that is moved most, in expected errors. Infinite where values become
  // non-finite or other experts are chosen.
  double of(const FaultSpec& fault);

 private:
  const std::string numerics_;
  const std::vector<std::int32_t> tokens_;
  test::Lockstep run_;
  test::Recorder clean_;
  Program program_;
};

}  // namespace moe_diag::score
