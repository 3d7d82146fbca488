// SPDX-License-Identifier: MIT
#include "core/forward/sequence.hpp"

#include <algorithm>
#include <cstddef>

namespace moe_diag {

std::vector<Stretch> stretches_of(int prompt, int length, int chunk) {
  const int longest = chunk > 0 ? chunk : prompt;
  std::vector<Stretch> stretches;
  for (int first = 0; first < prompt; first += stretches.back().count)
    stretches.push_back({first, std::min(longest, prompt - first)});
  for (int first = prompt; first < length; ++first) stretches.push_back({first, 1});
  return stretches;
}

Pass pass_over(const TokenSequence& sequence, Stretch stretch, int head_first) {
  Pass pass;
  pass.sequence = sequence.id;
  pass.tokens =
      sequence.tokens.subspan(static_cast<std::size_t>(stretch.first), static_cast<std::size_t>(stretch.count));
  if (pass.tokens.front() < 0) {  // a recording does not tell them
    pass.tokens = {};
    pass.rows_without_tokens = stretch.count;
  }
  pass.first = stretch.first;
  pass.total = static_cast<int>(sequence.tokens.size());
  pass.head_first = std::clamp(head_first - stretch.first, 0, stretch.count - 1);
  return pass;
}

}  // namespace moe_diag
