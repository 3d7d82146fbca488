// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "core/api/stage.hpp"

namespace moe_diag {

// Values that each layer keeps from one pass to the next: keys, values, a latent, a recurrent state.
struct CacheInfo {
  std::string_view name;     // "keys"
  std::array<Dim, 3> row{};  // of one position, or of the state; a size of 0: the layer has no such cache
  bool is_state = false;     // false: a row for each position. true: one value, valid behind the last position alone

  // Place in the table of its architecture.
  std::uint16_t index = 0;
};

// Numbers the rows of an architecture's table.
template <std::size_t N>
constexpr std::array<CacheInfo, N> numbered(std::array<CacheInfo, N> rows) {
  for (std::size_t i = 0; i < N; ++i) rows[i].index = static_cast<std::uint16_t>(i);
  return rows;
}

inline constexpr CacheInfo no_cache{};

// A named cache: a row of the table of its architecture, which lives as long as the process.
class Cache {
 public:
  constexpr Cache() = default;  // no cache
  constexpr explicit Cache(const CacheInfo& row) : row_(&row) {}

  constexpr const CacheInfo& row() const { return *row_; }
  // 0 to the number of caches of the architecture.
  constexpr std::size_t index() const { return row_->index; }
  constexpr explicit operator bool() const { return !row_->name.empty(); }

  friend constexpr bool operator==(Cache, Cache) = default;

 private:
  const CacheInfo* row_ = &no_cache;
};

constexpr const CacheInfo& info(Cache cache) { return cache.row(); }
constexpr std::string_view name_of(Cache cache) { return cache.row().name; }

// A cache of one layer.
struct CacheSite {
  Cache cache;
  int layer = -1;
};

// The caches of an architecture.
class Caches {
 public:
  constexpr Caches() = default;
  constexpr explicit Caches(std::span<const CacheInfo> rows) : rows_(rows) {}

  constexpr std::size_t size() const { return rows_.size(); }
  constexpr Cache operator[](std::size_t index) const { return Cache(rows_[index]); }

  // The cache of that name; no cache when there is none.
  constexpr Cache find(std::string_view name) const {
    for (const CacheInfo& row : rows_)
      if (row.name == name) return Cache(row);
    return {};
  }

 private:
  std::span<const CacheInfo> rows_;
};

}  // namespace moe_diag
