// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "core/ops/values.hpp"

namespace moe_diag::host {

// How activations can be rounded before a product reads them.
enum class Rounding {
  bf16,  // ties to even
  f16,   // ties to even
  q8_0,  // blocks of 32 in steps of largest / 127, the step kept as f16; ties to even
  q8_1,  // the same, the step kept as f32; ties to even
  q8_k,  // blocks of 256 in steps of f32, the largest becomes -127; ties to even
};
std::string_view name_of(Rounding rounding);
std::int64_t block_of(Rounding rounding);  // values that share a step

// x is whole blocks of finite values. Sources: ggml/src/ggml-quants.c (quantize_row_q8_K_ref, as x86
// with FMA compiles it), ggml/src/ggml-cpu/arch/x86/quants.c (quantize_row_q8_0, with AVX2).
Values rounded(std::span<const double> x, Rounding rounding);

}  // namespace moe_diag::host
