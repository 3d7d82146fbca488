// SPDX-License-Identifier: MIT
#include "core/bus/bus.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <span>
#include <string>

namespace moe_diag {
namespace {

std::string text_of(const Shape& shape) {
  return fmt::format("[{}]", fmt::join(std::span(shape.dims).first(static_cast<std::size_t>(shape.rank)), ", "));
}

}  // namespace

Sighting::Sighting(Lanes& lanes, const Pass& at, int in_prompt, Site where)
    : pass(at), prompt(in_prompt), site(where), lanes_(lanes), rows_(rows_of(where.stage)), seen_(lanes.size()) {}

Rows Sighting::rows_of(Stage stage) const {
  const int first = is_of_head(stage) ? pass.head_first : 0;
  return {first, pass.rows() - first};
}

Tensor Sighting::tensor(int lane) {
  const auto i = static_cast<std::size_t>(lane);
  if (!seen_[i]) seen_[i] = read(lane, site.stage, rows_);
  return seen_[i];
}

Tensor Sighting::now(int lane, Stage stage) { return read(lane, stage, rows_of(stage)); }

Tensor Sighting::cached(int lane, Cache cache) {
  return lanes_[static_cast<std::size_t>(lane)].read_cache(cache, site.layer, {0, pass.first + pass.rows()},
                                                           lanes_.config());
}

Tensor Sighting::read(int lane, Stage stage, Rows rows) {
  RunningLane& from = lanes_[static_cast<std::size_t>(lane)];
  if (!from.runs()) return {};
  const Tensor tensor = from.read({stage, site.layer}, rows);
  const Shape expected = lanes_.config().shape_of({stage, site.layer}, rows.count, pass.total);
  const bool indices = payload_of(stage) == Payload::indices;
  if (tensor && (!(tensor.shape == expected) || (tensor.dtype == DType::i32) != indices))
    throw Error(ErrorKind::environment, fmt::format("{}: read: {} came as {} {}, expected {} {}", from.label(),
                                                    name_of(stage), name_of(tensor.dtype), text_of(tensor.shape),
                                                    indices ? "i32" : "values", text_of(expected)));
  return tensor;
}

bool Bus::wanted(int prompt, int lane, Site site) const {
  return std::any_of(hooks_.begin(), hooks_.end(), [&](const Hook* h) { return h->wants(prompt, lane, site); });
}

bool Bus::looks_at(int prompt, const Lanes& lanes) const {
  for (int lane = 0; lane < static_cast<int>(lanes.size()); ++lane)
    for (const Stage stage : lanes.config().stages) {
      const bool layered = info(stage).scope == Scope::layer;
      for (int layer = layered ? 0 : -1; layer < (layered ? lanes.config().layers : 0); ++layer)
        if (wanted(prompt, lane, {stage, layer})) return true;
    }
  return false;
}

void Bus::deliver(Sighting& sighting, const std::vector<int>& lanes) {
  for (Hook* hook : hooks_) {
    const bool looks = std::any_of(lanes.begin(), lanes.end(),
                                   [&](int lane) { return hook->wants(sighting.prompt, lane, sighting.site); });
    if (!looks) continue;
    hook->show(sighting);
  }
}

}  // namespace moe_diag
