// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "core/ops/operator.hpp"
#include "core/ops/rounding.hpp"
#include "core/ops/values.hpp"

// The operators scores and mix share this: both read a cache, of keys or of values, head by head.
namespace moe_diag::host {

// The sizes of attention for one position: query head j reads kv head j / (heads / kv_heads), and `seen` keys.
struct Attention {
  std::int64_t heads = 0, kv_heads = 0, head_dim = 0;
  std::int64_t seen = 0;    // keys up to the own position
  std::int64_t total = 0;   // length of the whole sequence, the width of a head's row of scores
  std::int64_t cached = 0;  // values of a position in the cache, at least kv_heads * head_dim

  Attention(const HeadSizes& sizes, std::int64_t seen_keys, std::int64_t positions, std::int64_t cached_values)
      : heads(sizes.heads),
        kv_heads(sizes.kv_heads),
        head_dim(sizes.head_dim),
        seen(seen_keys),
        total(positions),
        cached(cached_values) {}
};

// Throws Error for sizes that do not fit.
void check(const Attention& attention, std::string_view op, std::span<const double> cache);

// The key or value of a position that a query head reads.
std::span<const double> cached(const Attention& attention, std::span<const double> cache, std::int64_t position,
                               std::int64_t head);

// A cache with entries of that width, those from a position on rounded, each by itself.
Values rounded_entries(Values cache, std::int64_t width, Rounding type, std::int64_t first = 0);

}  // namespace moe_diag::host

namespace moe_diag {

// The sizes of a step of scores or mix.
const HeadSizes& head_sizes(const Step& step);
// Of one row of a step.
host::Attention attention_of(const StepRows& rows, std::size_t row);
// The keys or values that its rows read: as they are, or in the type that the fault keeps them in.
host::Values cached_as_kept(const StepRows& rows);
// The rounding of a cache of that type; none: no cache is kept so.
std::optional<host::Rounding> cache_rounding(BlockType type);

// As all values of the cache: as many products a row.
Cost cost_of_attention(const Step& step, const ModelConfig& config, double rows, int total);

void add_attention_hypotheses(const Operands& operands, const FailingUnits& failing, HypothesisList& list);

}  // namespace moe_diag
