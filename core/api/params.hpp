// SPDX-License-Identifier: MIT
#pragma once

#include <variant>

namespace moe_diag {

// The parameters of the operators that have some; `enum class Op` has the formulas.

struct RmsNormParams {
  int offset = 0;  // first column read
  int width = 0;   // values of a group
  double eps = 0;

  friend constexpr bool operator==(const RmsNormParams&, const RmsNormParams&) = default;
};

struct RopeParams {
  int offset = 0;    // first column read
  int head_dim = 0;  // values of a head, even
  double theta = 0;

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

struct TopkParams {
  bool renormalised = false;  // the weights are divided by their sum

  friend constexpr bool operator==(const TopkParams&, const TopkParams&) = default;
};

// The parameters of one step; std::monostate: its operator has none.
using Params =
    std::variant<std::monostate, RmsNormParams, RopeParams, ScoresParams, SoftmaxParams, MixParams, TopkParams>;

}  // namespace moe_diag
