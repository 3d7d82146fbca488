// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <variant>

namespace moe_diag {

// The parameters of the operators that have some; `enum class Op` has the formulas.

struct RmsNormParams {
  int offset = 0;  // first column read
  int width = 0;   // values of a group
  double eps = 0;

  friend constexpr bool operator==(const RmsNormParams&, const RmsNormParams&) = default;
};

// How engines compute the angles of a rotation. `exact`: in double. The others are named variants, see
// docs/numerics.md: a backend never gets a step with one of them.
enum class RopeAngles : std::uint8_t {
  exact,
  f32,         // theta^(-2i/h) rounded to f32, times the position in f32
  f32_bf16,    // the same, its cosine and sine rounded to bf16
  multiplied,  // the position, multiplied by theta^(-2/h) in f32 once for each pair
};

struct RopeParams {
  int offset = 0;    // first column read
  int head_dim = 0;  // values of a head, even
  double theta = 0;
  RopeAngles angles = RopeAngles::exact;

  friend constexpr bool operator==(const RopeParams&, const RopeParams&) = default;
};

// The sizes of attention: query head j reads kv head j / (heads / kv_heads).
struct HeadSizes {
  int heads = 0;     // of queries
  int kv_heads = 0;  // divides `heads`
  int head_dim = 0;  // values of a head

  friend constexpr bool operator==(const HeadSizes&, const HeadSizes&) = default;
};

struct ScoresParams {
  HeadSizes sizes = {};
  double scale = 1;

  friend constexpr bool operator==(const ScoresParams&, const ScoresParams&) = default;
};

struct MixParams {
  HeadSizes sizes = {};

  friend constexpr bool operator==(const MixParams&, const MixParams&) = default;
};

struct SoftmaxParams {
  bool causal = false;

  friend constexpr bool operator==(const SoftmaxParams&, const SoftmaxParams&) = default;
};

// The number that weights of experts are divided by. All but `sum` are named variants, as for RopeAngles.
enum class Denominator : std::uint8_t {
  sum,
  sum_plus_1e20,  // plus 1e-20
  clamped,        // at least 6.103515625e-5, the smallest normal number of F16
};

struct TopkParams {
  bool renormalised = false;  // the weights are divided by their sum
  Denominator denominator = Denominator::sum;

  friend constexpr bool operator==(const TopkParams&, const TopkParams&) = default;
};

// The parameters of one step; std::monostate: its operator has none.
using Params =
    std::variant<std::monostate, RmsNormParams, RopeParams, ScoresParams, SoftmaxParams, MixParams, TopkParams>;

}  // namespace moe_diag
