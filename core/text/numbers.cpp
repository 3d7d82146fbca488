// SPDX-License-Identifier: MIT
#include "core/text/numbers.hpp"

#include <fmt/format.h>

namespace moe_diag {

std::vector<Range> ranges_of(const std::vector<int>& ascending) {
  std::vector<Range> ranges;
  for (const int number : ascending)
    if (!ranges.empty() && ranges.back().second == number - 1)
      ranges.back().second = number;
    else
      ranges.push_back({number, number});
  return ranges;
}

std::string range_text(Range range) {
  return range.first == range.second ? fmt::format("{}", range.first)
                                     : fmt::format("{} to {}", range.first, range.second);
}

std::string ranges_text(const std::vector<Range>& ranges) {
  std::string text;
  for (const Range& range : ranges) text += (text.empty() ? "" : ", ") + range_text(range);
  return text;
}

std::string numbers_text(const std::vector<int>& ascending) { return ranges_text(ranges_of(ascending)); }

}  // namespace moe_diag
