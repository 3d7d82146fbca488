// SPDX-License-Identifier: MIT
#include "core/bus/bus.hpp"

#include <algorithm>

namespace moe_diag {
namespace {

Rows rows_of(const Pass& pass, Stage stage) {
  const int first = stage >= Stage::final_norm ? pass.head_first : 0;
  return {first, pass.rows() - first};
}

}  // namespace

Sighting::Sighting(Lanes& lanes, const Pass& at, int in_prompt, Site where)
    : pass(at), prompt(in_prompt), site(where), lanes_(lanes), rows_(rows_of(at, where.stage)), seen_(lanes.size()) {}

Tensor Sighting::tensor(int lane) {
  const auto i = static_cast<std::size_t>(lane);
  if (!seen_[i] && lanes_[i].runs()) seen_[i] = lanes_[i].read(site.stage, rows_);
  return seen_[i];
}

Tensor Sighting::now(int lane, Stage stage) {
  RunningLane& from = lanes_[static_cast<std::size_t>(lane)];
  return from.runs() ? from.read(stage, rows_of(pass, stage)) : Tensor{};
}

bool Bus::wanted(int prompt, int lane, Site site) const {
  return std::any_of(hooks_.begin(), hooks_.end(), [&](const Hook* h) { return h->wants(prompt, lane, site); });
}

void Bus::deliver(Sighting& sighting, const std::vector<int>& lanes) {
  for (Hook* hook : hooks_) {
    const bool looks = std::any_of(lanes.begin(), lanes.end(),
                                   [&](int lane) { return hook->wants(sighting.prompt, lane, sighting.site); });
    if (!looks) continue;
    hook->show(sighting);
    ++deliveries_;
  }
}

}  // namespace moe_diag
