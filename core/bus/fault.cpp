// SPDX-License-Identifier: MIT
#include "core/bus/fault.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <span>
#include <vector>

namespace moe_diag {
namespace {

// One row of what a lane holds, changed.
template <class T>
void edit_row(const FaultSpec& spec, std::span<T> row, int experts) {
  switch (spec.kind) {
    case FaultSpec::Kind::nan: row[static_cast<std::size_t>(spec.index)] = std::numeric_limits<T>::quiet_NaN(); break;
    case FaultSpec::Kind::scale:
      for (T& v : row) v = static_cast<T>(v * spec.factor);
      break;
    case FaultSpec::Kind::wrong_expert:
      // The best expert makes room for the first one that was not chosen.
      for (int e = 0; e < experts; ++e)
        if (std::find(row.begin(), row.end(), static_cast<T>(e)) == row.end()) {
          row[0] = static_cast<T>(e);
          break;
        }
      break;
  }
}

template <class T>
std::int64_t edit(const PlantedFault& fault, const Tensor& held, Sighting& sighting, Lanes& lanes) {
  const auto width = static_cast<std::size_t>(held.shape.row());
  std::vector<T> values(held.as<T>(), held.as<T>() + held.shape.count());
  for (int position : fault.spec.positions.resolve(sighting.pass.total)) {
    const int r = position - sighting.position(0);
    if (r >= 0 && r < sighting.rows().count)
      edit_row(fault.spec, std::span(values).subspan(static_cast<std::size_t>(r) * width, width),
               lanes.config().experts);
  }
  std::int64_t changed = 0;
  for (std::size_t i = 0; i < values.size(); ++i) changed += std::memcmp(&values[i], held.as<T>() + i, sizeof(T)) != 0;
  lanes[static_cast<std::size_t>(fault.lane)].write(sighting.site.stage, sighting.rows(),
                                                    {values.data(), held.dtype, held.shape});
  return changed;
}

}  // namespace

bool edits_values(const PlantedFault& fault) {
  return fault.spec.kind != FaultSpec::Kind::wrong_expert || fault.spec.stage == Stage::moe_router_indices;
}

void edit_step(const PlantedFault& fault, Step& step) {
  if (!edits_values(fault)) step.params.expert_shift = 1;
}

std::int64_t edit_values(const PlantedFault& fault, Sighting& sighting, Lanes& lanes) {
  const Tensor held = sighting.now(fault.lane, sighting.site.stage);
  if (!held) return 0;
  switch (held.dtype) {
    case DType::f32: return edit<float>(fault, held, sighting, lanes);
    case DType::f64: return edit<double>(fault, held, sighting, lanes);
    case DType::i32: return edit<std::int32_t>(fault, held, sighting, lanes);
  }
  return 0;
}

}  // namespace moe_diag
