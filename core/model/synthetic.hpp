// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace moe_diag {

// A random but well-behaved model, the same bytes for the same spec on every machine and thread count.
struct SyntheticSpec {
  std::string preset = "tiny";   // tiny | qwen3-30b-a3b
  int layers = 0;                // 0: the preset's own
  std::string quant = "q4_k_m";  // f32 | f16 | bf16 | q8_0 | q4_k | q6_k | q4_k_m
  std::uint64_t seed = 0;
};

}  // namespace moe_diag
