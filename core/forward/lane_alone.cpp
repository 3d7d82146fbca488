// SPDX-License-Identifier: MIT
#include "core/forward/lane_alone.hpp"

#include <algorithm>

#include "core/lane/lanes.hpp"

namespace moe_diag {

LaneAlone::LaneAlone(Lanes& lanes, int lane)
    : lanes_(lanes), lane_(lane), program_(lanes.program(static_cast<std::size_t>(lane))) {
  for (Step& step : program_)
    step.want = std::any_of(step.out.begin(), step.out.end(), [](Stage stage) { return is_of_head(stage); });
}

void LaneAlone::pass(const Pass& pass, int prompt, Hook* hook) {
  RunningLane& lane = lanes_[static_cast<std::size_t>(lane_)];
  lane.begin(pass);
  lane.run(program_);
  const Stages& stages = lanes_.config().stages;
  lane.read({stages.of(Role::logits), -1}, {pass.rows() - 1, 1});
  if (!hook) return;
  for (const Stage stage : stages) {
    if (!is_of_head(stage)) continue;
    Sighting sighting(lanes_, pass, prompt, {stage, -1});
    if (hook->wants(prompt, lane_, sighting.site)) hook->show(sighting);
  }
}

}  // namespace moe_diag
