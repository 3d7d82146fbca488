// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace moe_diag {

struct TokenSequence {
  std::string id;  // as the file gives it; empty: it gives none
  std::vector<std::int32_t> tokens;
};

// The token ids in a file of at most 16 MiB. `.npy`: one sequence, a one-dimensional array of little-endian int32 or
// int64. `.jsonl`: a sequence a line, a list of ids or an object with "tokens" and, if it likes, "id". Nothing in the
// file is trusted. Throws Error(usage) with what is wrong and where in the file; the caller knows its name.
std::vector<TokenSequence> read_tokens_file(const std::string& path);

}  // namespace moe_diag
