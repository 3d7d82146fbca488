// SPDX-License-Identifier: MIT
#include "core/explain/kept_caches.hpp"
#include "core/ops/operator.hpp"

#include <algorithm>

namespace moe_diag {

bool KeptCaches::is_kept(std::size_t lane, const std::vector<bool>& active) const {
  return active[lane] && lanes_[lane].runs() && lanes_[lane].inputs < 0;
}

std::uint64_t KeptCaches::bytes(std::int64_t positions, const std::vector<bool>& active) const {
  std::uint64_t bytes = 0;
  for (std::size_t i = 0; i < lanes_.size(); ++i)
    if (is_kept(i, active))
      bytes += static_cast<std::uint64_t>(positions * lanes_.config().kv_width()) *
               static_cast<std::uint64_t>(std::count_if(program_.begin(), program_.end(), reads_cache)) *
               size_of(lanes_[i].description.values);
  return bytes;
}

void KeptCaches::keep(int prompt, int positions, const std::vector<bool>& active) {
  for (std::size_t i = 0; i < lanes_.size(); ++i) {
    if (!is_kept(i, active)) continue;
    Kept& kept = kept_[{prompt, static_cast<int>(i)}];
    kept = {positions, lanes_[i].description.values, {}};
    std::vector<bool> alone(lanes_.size(), false);
    alone[i] = true;
    kept.values.reserve(bytes(positions, alone));
    for (const Step& step : program_) {
      if (!reads_cache(step)) continue;
      const Tensor cache = lanes_[i].read_cache(cache_part(step), step.layer, {0, positions}, lanes_.config());
      if (!cache) {
        kept_.erase({prompt, static_cast<int>(i)});
        break;
      }
      kept.dtype = cache.dtype;
      kept.values.insert(kept.values.end(), cache.as<std::byte>(), cache.as<std::byte>() + cache.bytes());
    }
  }
}

bool KeptCaches::restore(int prompt, int lane, const Pass& pass) {
  const auto at = kept_.find({prompt, lane});
  if (at == kept_.end() || at->second.positions < pass.first) return false;
  const Kept& kept = at->second;
  RunningLane& running = lanes_[static_cast<std::size_t>(lane)];
  running.begin(pass);
  const std::byte* values = kept.values.data();
  for (const Step& step : program_) {
    if (!reads_cache(step)) continue;
    const Shape shape{pass.first, lanes_.config().kv_width()};
    running.write_cache(cache_part(step), step.layer, {0, pass.first}, {values, kept.dtype, shape});
    values += static_cast<std::size_t>(kept.positions * shape[1]) * size_of(kept.dtype);
  }
  return true;
}

}  // namespace moe_diag
