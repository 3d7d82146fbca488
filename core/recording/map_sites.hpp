// SPDX-License-Identifier: MIT
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/api/model.hpp"
#include "core/contract/dump_map.hpp"
#include "core/recording/map_calls.hpp"
#include "core/recording/map_files.hpp"
#include "core/recording/map_view.hpp"

namespace moe_diag {

// The arrays that hold the rows of a site: of one call, or of all.
struct MappedSite {
  const StageMap* map = nullptr;
  Site site;
  MapKey key;
  std::vector<std::vector<MapView>> sources;  // by entry of `from`, then by rank
  const MapArray* order = nullptr;            // null: the rows are in the order of positions

  std::int64_t rows() const { return sources.front().front().rows.size; }
};

// All that the map finds, in forward order. Points into `files` and `map`. Throws Error(usage) for a pattern that
// nothing has, unless it is optional, for two arrays of the same rows, and for layers that the model has not.
std::vector<MappedSite> find_sites(MapFiles& files, const DumpMap& map, const ModelConfig& config);

// "map.yaml:5:3: <stage>"
std::string place_of(const DumpMap& map, const StageMap& stage);

}  // namespace moe_diag
