// SPDX-License-Identifier: MIT
#include "core/verdict/coverage.hpp"

#include <algorithm>

#include "core/compare/chosen.hpp"

namespace moe_diag {

Coverage::Coverage(const Plan& plan, const ModelConfig& config, int lane)
    : lane_(lane),
      looked_at_(static_cast<std::size_t>(config.layers)),
      rows_(looked_at_.size(), std::vector<std::int64_t>(static_cast<std::size_t>(config.experts))) {
  for (const WatchedFalsifier& falsifier : plan.falsifiers) {
    if (!in_lockstep(*falsifier.spec)) continue;
    for (Site site : falsifier.sites.in_forward_order())
      if (site.layer >= 0 && !comes_before(site.stage, site.stage.sibling(Role::choice)))
        looked_at_[static_cast<std::size_t>(site.layer)] = true;
  }
}

bool Coverage::wants(int /*prompt*/, int lane, Site site) const {
  return lane == lane_ && is(site.stage, Role::choice) && looked_at_[static_cast<std::size_t>(site.layer)];
}

void Coverage::show(Sighting& sighting) {
  const Tensor chosen = sighting.tensor(lane_);
  if (!chosen) return;
  std::vector<std::int64_t>& rows = rows_[static_cast<std::size_t>(sighting.site.layer)];
  for (int row = 0; row < static_cast<int>(chosen.shape[0]); ++row) {
    const ChosenRow experts(chosen, row, static_cast<int>(rows.size()));
    for (std::size_t slot = 0; slot < experts.ids().size(); ++slot)
      if (experts.is_good(slot)) ++rows[static_cast<std::size_t>(experts.ids()[slot])];
  }
}

std::vector<LayerCoverage> Coverage::layers() const {
  std::vector<LayerCoverage> list;
  for (std::size_t layer = 0; layer < rows_.size(); ++layer)
    if (std::any_of(rows_[layer].begin(), rows_[layer].end(), [](std::int64_t n) { return n > 0; }))
      list.push_back({static_cast<int>(layer), rows_[layer]});
  return list;
}

}  // namespace moe_diag
