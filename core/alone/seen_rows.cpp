// SPDX-License-Identifier: MIT
#include "core/alone/seen_rows.hpp"

#include <xxhash.h>

namespace moe_diag {

bool SeenRows::wants(int prompt, int lane, Site site) const {
  return lane == lane_ && watched_.sites.contains(site) &&
         !watched_.positions[static_cast<std::size_t>(prompt)].empty();
}

void SeenRows::show(Sighting& sighting) {
  if (!wants(sighting.prompt, lane_, sighting.site)) return;
  const Tensor all = sighting.tensor(lane_);
  if (!all) return;
  const std::size_t size = static_cast<std::size_t>(all.shape.row()) * size_of(all.dtype);
  for (int position : watched_.positions[static_cast<std::size_t>(sighting.prompt)]) {
    const int row = position - sighting.position(0);
    if (row < 0 || row >= sighting.rows().count) continue;
    const std::byte* data = all.as<std::byte>() + static_cast<std::size_t>(row) * size;
    SeenRow& kept = rows_[{sighting.prompt, sighting.site, position}];
    kept.dtype = all.dtype;
    if (keep_ == Keep::digests)
      kept.digest = XXH3_64bits(data, size);
    else
      kept.bytes.assign(data, data + size);
  }
}

const SeenRow* SeenRows::find(const RowKey& key) const {
  const auto at = rows_.find(key);
  return at == rows_.end() ? nullptr : &at->second;
}

}  // namespace moe_diag
