// SPDX-License-Identifier: MIT
#include "core/explain/kept_caches.hpp"

#include <algorithm>

namespace moe_diag {

KeptCaches::KeptCaches(const Program& program, Lanes& lanes) : lanes_(lanes) {
  const auto is_known = [&](Cache cache, int layer) {
    return std::any_of(sites_.begin(), sites_.end(),
                       [&](const CacheSite& at) { return at.cache == cache && at.layer == layer; });
  };
  for (const Step& step : program)
    for (const CacheUse& use : step.caches)
      if (!is_known(use.cache, step.layer)) sites_.push_back({use.cache, step.layer});
}

bool KeptCaches::is_kept(std::size_t lane, const std::vector<bool>& active) const {
  return active[lane] && lanes_[lane].runs() && lanes_[lane].inputs < 0;
}

std::uint64_t KeptCaches::bytes(std::int64_t positions, const std::vector<bool>& active) const {
  std::uint64_t bytes = 0;
  for (std::size_t i = 0; i < lanes_.size(); ++i)
    if (is_kept(i, active))
      for (const CacheSite& at : sites_)
        bytes += static_cast<std::uint64_t>((info(at.cache).is_state ? 1 : positions) *
                                            lanes_.config().cache_width(at.cache, at.layer)) *
                 size_of(lanes_[i].description.values);
  return bytes;
}

// The positions that are kept of a cache when the sequence has so many.
Stretch KeptCaches::kept_of(Cache cache, int positions) {
  return info(cache).is_state ? Stretch{positions - 1, 1} : Stretch{0, positions};
}

void KeptCaches::keep(int prompt, int positions, const std::vector<bool>& active) {
  for (std::size_t i = 0; i < lanes_.size(); ++i) {
    if (!is_kept(i, active)) continue;
    Kept& kept = kept_[{prompt, static_cast<int>(i)}];
    kept = {positions, {}};
    for (const CacheSite& at : sites_) {
      const Tensor cache = lanes_[i].read_cache(at.cache, at.layer, kept_of(at.cache, positions), lanes_.config());
      if (!cache) {
        kept_.erase({prompt, static_cast<int>(i)});
        break;
      }
      kept.caches.push_back({cache.dtype, {cache.as<std::byte>(), cache.as<std::byte>() + cache.bytes()}});
    }
  }
}

bool KeptCaches::restore(int prompt, int lane, const Pass& pass) {
  const auto at = kept_.find({prompt, lane});
  if (at == kept_.end()) return false;
  RunningLane& running = lanes_[static_cast<std::size_t>(lane)];
  const Kept& kept = at->second;
  if (running.abilities().rewinds ? kept.positions < pass.first : kept.positions != pass.first) return false;
  running.begin(pass);
  for (std::size_t i = 0; i < sites_.size(); ++i) {
    const auto [cache, layer] = sites_[i];
    const Stretch positions = kept_of(cache, pass.first);
    const Shape shape{positions.count, lanes_.config().cache_width(cache, layer)};
    running.write_cache(cache, layer, positions, {kept.caches[i].bytes.data(), kept.caches[i].dtype, shape});
  }
  return true;
}

}  // namespace moe_diag
