// SPDX-License-Identifier: MIT
#include "core/contract/fault.hpp"

#include "core/contract/metric.hpp"

namespace moe_diag {

std::string fitting_stages(Fault::Kind kind, Stages stages) {
  return stages_listed(stages, [&](Stage stage) { return fits(kind, stage); });
}

std::vector<int> positions_changed(const FaultSpec& fault, int tokens) {
  std::vector<int> positions = fault.positions.resolve(tokens);
  if (spares_the_first(fault) && !positions.empty() && positions.front() == 0) positions.erase(positions.begin());
  if (fault.kind == Fault::Kind::stale_kv && !positions.empty()) {
    const int first_key = positions.front();
    positions.clear();
    for (int p = first_key; p < tokens; ++p) positions.push_back(p);
  }
  return positions;
}

}  // namespace moe_diag
