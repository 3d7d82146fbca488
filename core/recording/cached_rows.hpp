// SPDX-License-Identifier: MIT
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/api/cache.hpp"
#include "core/api/model.hpp"
#include "core/recording/npy_rows.hpp"
#include "core/recording/recording.hpp"

namespace moe_diag {

// Keys and values of positions that were computed before a recording began: a prefix cache, or a prompt whose decoding
// alone was recorded. Files cached/<request>/layer_07/<cache>.npy, with a row for each position from 0 up to the first
// one recorded.
class CachedRows {
 public:
  CachedRows() = default;
  // Throws Error(usage) with file, expected, found. None where there is no such folder.
  CachedRows(const std::string& dump, const ModelConfig& config, const std::vector<RecordedRequest>& requests,
             bool zeros_ok);

  // [positions, width] from 0 on; null: not recorded.
  Tensor rows(int request, Cache cache, int layer) const;

 private:
  void add(const std::string& path, const std::string& file, int layer, int request, int positions,
           const ModelConfig& config);

  bool zeros_ok_ = false;
  std::map<std::pair<int, std::pair<std::size_t, int>>, MappedNpy> arrays_;  // by request, cache and layer
};

}  // namespace moe_diag
