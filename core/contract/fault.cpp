// SPDX-License-Identifier: MIT
#include "core/contract/fault.hpp"

#include <algorithm>
#include <numeric>

#include "core/contract/metric.hpp"

namespace moe_diag {

std::string fitting_stages(Fault::Kind kind, Stages stages) {
  return stages_listed(stages, [&](Stage stage) { return fits(kind, stage); });
}

std::vector<int> positions_changed(const FaultSpec& fault, int tokens) {
  std::vector<int> positions = fault.positions.resolve(tokens);
  const auto changed = std::lower_bound(positions.begin(), positions.end(), first_changed(fault));
  positions.erase(positions.begin(), changed);
  if (fault.kind == Fault::Kind::stale_kv && !positions.empty()) {
    const int first_key = positions.front();
    positions.clear();
    for (int p = first_key; p < tokens; ++p) positions.push_back(p);
  }
  return positions;
}

std::vector<int> part_of(const FaultSpec& fault, int count) {
  if (fault.part) return fault.part->resolve(count);
  std::vector<int> second_half(static_cast<std::size_t>(count - count / 2));
  std::iota(second_half.begin(), second_half.end(), count / 2);
  return second_half;
}

}  // namespace moe_diag
