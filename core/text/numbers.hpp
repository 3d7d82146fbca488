// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace moe_diag {

using Range = std::pair<std::int64_t, std::int64_t>;  // first and last

// The runs of ascending numbers.
std::vector<Range> ranges_of(const std::vector<int>& ascending);

// "3" or "3 to 5"
std::string range_text(Range range);
// "3, 5 to 7"
std::string ranges_text(const std::vector<Range>& ranges);
// The same of ascending numbers.
std::string numbers_text(const std::vector<int>& ascending);

}  // namespace moe_diag
