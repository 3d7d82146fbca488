// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/api/params.hpp"
#include "core/ops/operator.hpp"
#include "core/ops/values.hpp"

namespace moe_diag::host {

enum class RopePairs {
  halves,      // (i, i + h/2), what Qwen3 does
  neighbours,  // (2i, 2i + 1)
};
struct RopeOptions {
  double theta = 0;
  RopePairs pairs = RopePairs::halves;
  RopeAngles angles = RopeAngles::exact;
  // Forms that engines have by mistake:
  std::int64_t columns = 0;  // the first ones of a head, rotated as if they were all of it; 0: all
  double divisor = 1;        // of positions
};
// The cosine and the sine of the angle that a pair is turned by at a position.
struct Turn {
  double cosine, sine;
};
// The turns of all pairs among `columns` columns. Sources of the variants: transformers, modeling_rope_utils.py
// (_compute_default_rope_parameters) and Qwen3MoeRotaryEmbedding.forward, whose tables have the model's type; ggml,
// ggml-cpu/ops.cpp (ggml_rope_cache_init). Powers, cosines and sines are rounded to the nearest f32, which libraries
// miss by a unit in the last place each.
std::vector<Turn> turns(std::int64_t columns, double position, double theta, RopeAngles angles);
// inverse_frequencies: 1 / theta^(2i/h) of each pair. turns_in_f32: the variant `f32`, or `f32_bf16`, from these.
std::vector<float> inverse_frequencies(std::int64_t columns, double theta);
std::vector<Turn> turns_in_f32(std::span<const float> inverse_frequencies, double position, bool with_bf16_tables);
// Heads side by side, whose first pairs are turned: one turn for each.
Values turned(std::span<const double> x, std::int64_t head_dim, std::span<const Turn> turns, RopePairs pairs);

// One position's heads, [heads, h]: rotates pair i of each by position * theta^(-2i/h).
Values rope(std::span<const double> x, std::int64_t head_dim, std::int64_t position, const RopeOptions& options);

}  // namespace moe_diag::host

namespace moe_diag {

extern const Operator rope_op;

void add_rope_hypotheses(const Operands& operands, const FailingUnits& failing, HypothesisList& list);

}  // namespace moe_diag
