// SPDX-License-Identifier: MIT
#pragma once

#include <vector>

#include "core/bus/bus.hpp"
#include "core/contract/contract.hpp"
#include "core/model/program.hpp"

namespace moe_diag {

// What one step of a lane read and gave in the pass that computed a position.
struct SeenStep {
  int first = 0, count = 0;         // positions that the pass computed the output for; 0 of them: it did not pass by
  std::vector<GivenValues> inputs;  // of those positions; keys and values of attention: of all up to the last
  GivenValues output;               // as the lane gave it, planted faults included
  GivenValues other;                // the same of another lane; empty: there is none
};

// Rows [first, first + count).
GivenValues rows_of(const GivenValues& values, int first, int count);

// Keeps one step of a lane as it passes by.
class StepWatcher final : public Hook {
 public:
  struct Where {
    int prompt = 0, position = 0;
    Site site;
    int lane = 0, other = -1;  // other: -1 when there is none
  };
  StepWatcher(const Program& program, const Where& where);

  bool wants(int prompt, int lane, Site site) const override;
  void show(Sighting& sighting) override;

  const SeenStep& seen() const { return seen_; }

 private:
  void read_inputs(Sighting& sighting);

  const Where where_;
  const Step step_;
  std::vector<Site> read_;  // where the step's inputs are written
  SeenStep seen_;
};

}  // namespace moe_diag
