// SPDX-License-Identifier: MIT
#pragma once

#include "core/bus/bus.hpp"
#include "core/model/program.hpp"

namespace moe_diag {

// One lane alone and nobody looking: each pass is a single span, as in production.
class LaneAlone {
 public:
  LaneAlone(Lanes& lanes, int lane);

  // Returns when the pass is done. The hook, if any, is then shown final_norm and lm_head, which no step overwrites.
  void pass(const Pass& pass, int prompt, Hook* hook = nullptr);

 private:
  Lanes& lanes_;
  const int lane_;
  Program program_;
};

}  // namespace moe_diag
