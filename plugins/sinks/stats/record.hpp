// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "core/api/event.hpp"
#include "plugins/sinks/stats/accumulator.hpp"

namespace moe_diag {

// One row of the output.
struct StatsRecord {
  std::string_view prompt, lane;
  Site site;
  DType dtype = DType::f32;
  std::int64_t rows = 0;
  std::variant<ValueStats, IndexStats> stats;
};

// Writers of the three forms; records come in the order they are shown.
std::string json_of(const RunInfo& run, const std::vector<const StatsRecord*>& records);
std::string csv_of(const std::vector<const StatsRecord*>& records);
// At most `rows` lines a lane: the first and the last sites, and all that hold NaN or Inf.
std::string table_of(const std::vector<const StatsRecord*>& records, std::size_t rows, std::string_view file);

}  // namespace moe_diag
