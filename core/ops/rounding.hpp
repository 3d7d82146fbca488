// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "core/ops/values.hpp"

namespace moe_diag::host {

// How activations can be rounded before a product reads them.
enum class Rounding {
  bf16,         // ties to even
  f16,          // ties to even
  q8_0,         // blocks of 32 in steps of largest / 127, the step kept as f16; ties to even
  q8_0_scalar,  // the same, by the inverse of the step, halves away from zero
  q8_1,         // as q8_0, the step kept as f32; ties to even
  q8_k,         // blocks of 256 in steps of f32, the largest becomes -127; ties to even
  q4_0,         // blocks of 32 in 16 steps, the largest becomes -8, the step kept as f16; halves away from zero
  // FP8 E4M3, beyond 448 the largest; ties to even. Divided by a scale before, multiplied by it afterwards:
  fp8,           // 1
  fp8_token,     // of each row, its largest / 448 in f32
  fp8_128,       // of 128 values, the same
  fp8_128_pow2,  // the same, rounded up to a power of two
  fp8_static,    // given
  mxfp8,         // of 32 values, 2^(exponent of the largest - 8)
  mxfp4,         // FP4 E2M1, beyond 6 the largest; of 32 values, 2^(exponent of the largest - 2)
  // FP4 E2M1, of 16 values: their largest / 6 in FP8 E4M3, times a scale of all in f32. That one is given, or the
  // largest of each row / (448 * 6).
  nvfp4,
};
std::string_view name_of(Rounding rounding);
std::int64_t block_of(Rounding rounding);  // values that share a step; 1 also where a row shares one

// x is whole blocks of finite values, in rows of `row` values; 0: it is one. `scale`: where one may be given; 0: none
// is. Sources: ggml/src/ggml-quants.c
// (quantize_row_q8_K_ref, as x86 with FMA compiles it; quantize_row_q4_0_ref; quantize_row_q8_0_ref, the scalar one),
// ggml/src/ggml-cpu/arch/x86/quants.c (quantize_row_q8_0, with AVX2); vLLM csrc/quantization/fp8/common.cuh and
// model_executor/layers/quantization/utils/fp8_utils.py (_per_token_group_quant_fp8); OCP Microscaling Formats 1.0,
// section 6.3; vLLM csrc/quantization/fp4/nvfp4_utils.cuh and its reference, nvfp4_emulation_utils.py
// (ref_nvfp4_quant).
Values rounded(std::span<const double> x, Rounding rounding, std::int64_t row = 0, float scale = 0);

}  // namespace moe_diag::host
