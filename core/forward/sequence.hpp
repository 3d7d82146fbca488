// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/api/backend.hpp"

namespace moe_diag {

// A sequence of `length` positions cut into passes: its first `prompt` positions in chunks (0: all at once), then one
// after the other.
std::vector<Stretch> stretches_of(int prompt, int length, int chunk);

// The tokens of a sequence. Those of other sequences of a run have another id.
struct TokenSequence {
  std::int64_t id = 0;
  std::span<const std::int32_t> tokens;
};

// The pass over a stretch of a sequence. The head is computed from position `head_first` on, and always at the last
// row.
Pass pass_over(const TokenSequence& sequence, Stretch stretch, int head_first);

}  // namespace moe_diag
