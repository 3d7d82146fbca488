// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/contract/dump_map.hpp"
#include "core/recording/call_table.hpp"
#include "core/recording/map_files.hpp"

namespace moe_diag {

// The call and the request whose rows an array has, as its name says.
struct MapKey {
  int call = -1;        // -1: of all calls, one behind the other
  std::string request;  // empty: of all requests

  static MapKey of(const MapHit& hit) { return {hit.number("call"), hit.text("request")}; }
  bool covers(const MapKey& part) const {
    return (call < 0 || call == part.call) && (request.empty() || request == part.request);
  }
  friend auto operator<=>(const MapKey&, const MapKey&) = default;
};

// The rows of an array that has all rows of what its name says.
struct MapRowCount {
  MapKey key;
  std::int64_t rows = 0;
  std::string where;  // the array, for messages
};

// The calls of a foreign dump: by the file that the map names, else made of the names of its arrays, their rows, and
// the arrays of tokens, positions and lengths.
struct MappedCalls {
  CallTable table;
  std::vector<MapKey> keys;  // of each part of the table

  // Throws Error(usage).
  static MappedCalls find(MapFiles& files, const DumpMap& map, const ModelConfig& config,
                          const std::vector<MapRowCount>& counts);
};

}  // namespace moe_diag
