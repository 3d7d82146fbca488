// SPDX-License-Identifier: MIT
#pragma once

#include <memory>
#include <string>

#include "core/contract/dump_map.hpp"
#include "core/recording/call_table.hpp"
#include "core/recording/row_source.hpp"

namespace moe_diag {

// The rows of another tool's dump, found as the map says. Rows that lie in one piece stay where they are; what has to
// be put together (ranks, sums, rows in the order of experts) is copied. Fills `table`, which outlives the rows. Throws
// Error(usage) with file or place in the map, expected, found.
std::unique_ptr<RowSource> open_mapped_rows(const std::string& folder, const DumpMap& map, CallTable& table,
                                            const RowRules& rules);

}  // namespace moe_diag
