// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/contract/dump_map.hpp"
#include "core/recording/map_files.hpp"

namespace moe_diag {

// Rows of an array of a foreign dump: one for each position, wherever their values lie.
struct MapView {
  struct Dim {
    std::int64_t size = 1, stride = 1;  // elements
  };

  const MapArray* array = nullptr;
  Dim rows;
  std::int64_t first = 0;   // element that the first row begins with
  std::vector<Dim> values;  // of a row, slowest first

  bool is_one_piece() const;  // the values of a row lie one behind the other
  const std::byte* row(std::int64_t index) const;
};

// What a view is made with.
struct MapShape {
  const StageMap& map;
  std::string where;           // the stage in the map, for messages
  std::int64_t width = 0;      // elements of a row of the stage
  std::size_t dimensions = 1;  // of such a row
  std::int64_t layer = 0;      // index on the axis `layer`
  std::int64_t together = 0;   // elements of this array and those side by side with it
};
// Throws Error(usage) for an array whose dimensions are not those of the map.
MapView view_of(const MapArray& array, const MapShape& shape);
// The size of the array's axis `layer`; none: the map has no such axis.
std::optional<std::int64_t> layers_of(const MapArray& array, const StageMap& map);

// The rows of a stage: the arrays of `from`, each of one rank or several, put together.
class JoinedRows {
 public:
  // `sources`: by entry of `from`, then by rank. `qkv`: values of a row of the fused product that are q's, k's and v's,
  // up to a factor. Throws Error(usage) for arrays that do not fit each other.
  JoinedRows(std::vector<std::vector<MapView>> sources, const StageMap& map, std::vector<std::int64_t> qkv);

  std::int64_t rows() const { return first().rows.size; }
  const std::vector<std::int64_t>& values() const { return values_; }  // shape of a row
  Element element() const { return element_; }
  std::size_t row_bytes() const;
  const MapView& first() const { return sources_.front().front(); }

  // Where the row lies in its file in one piece; null: it has to be gathered.
  const std::byte* in_place(std::int64_t row) const;
  void gather(std::int64_t row, std::byte* to) const;

 private:
  struct Block {
    Element element = Element::f32;
    std::vector<std::int64_t> shape;
    std::vector<std::byte> bytes;
  };
  Block block_of(const MapView& view, std::int64_t row) const;
  Block joined(const std::vector<Block>& parts, std::size_t dim, std::vector<std::int64_t> shares) const;
  Block summed(const std::vector<Block>& parts) const;
  Block row_of(std::int64_t row) const;
  void check_sources() const;

  std::vector<std::vector<MapView>> sources_;
  std::vector<std::int64_t> qkv_;
  bool is_sum_ = false, is_rank_sum_ = false;
  std::optional<std::size_t> cut_;  // dimension of the values that ranks have a part of
  Element read_, element_;          // in the files; of the rows put together
  std::vector<std::int64_t> values_;
};

}  // namespace moe_diag
