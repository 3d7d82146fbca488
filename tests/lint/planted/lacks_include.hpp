// SPDX-License-Identifier: MIT
#pragma once

// For the header-alone test, which must refuse it: <vector> is missing on purpose.
namespace moe_diag {

inline bool planted_empty(const std::vector<int>& values) { return values.empty(); }

}  // namespace moe_diag
