// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstddef>
#include <initializer_list>

#include "core/api/model.hpp"
#include "core/api/stage.hpp"

namespace moe_diag {

// At most N values, in place: steps are plain data.
template <class T, std::size_t N>
class Few {
 public:
  constexpr Few() = default;
  constexpr Few(std::initializer_list<T> list) {
    for (const T& v : list) items_[size_++] = v;
  }
  constexpr const T* begin() const { return items_.data(); }
  constexpr const T* end() const { return items_.data() + size_; }
  constexpr std::size_t size() const { return size_; }
  constexpr const T& operator[](std::size_t i) const { return items_[i]; }

 private:
  std::array<T, N> items_{};
  std::size_t size_ = 0;
};

enum class Op : std::uint8_t {
  embed,     // out[t] = weight row of token t
  rms_norm,  // per group of `params.width` values from column `params.offset`: x / sqrt(mean(x^2) + eps) * w
  linear,    // out[t] = W x[t]; several weights write side by side
  rope,      // rotate pairs (i, i + h/2) by position * theta^(-2i/h)
  scores,    // q . k * scale for the keys up to the own position, 0 after it; appends this pass's keys to the cache
  softmax,   // over the whole row, or, when causal, over the keys up to the own position, 0 after it
  mix,       // sum over keys of probability times value; appends this pass's values to the cache
  add,       // in[0] + in[1]
  topk,      // the k largest, ties to the lower id, and their share of the sum
  expert_linear,  // out[t, slot] = W[indices[t, slot]] x; x is [T, d] or [T, k, f]
  swiglu,         // silu(in[0]) * in[1]
  weigh,          // in[0][t, slot] * in[1][t, slot]
  combine,        // sum over slots, in slot order
};

struct Params {
  int offset = 0;       // rms_norm: first column read
  int width = 0;        // rms_norm: values per group
  double eps = 0;       // rms_norm
  double theta = 0;     // rope
  double scale = 1;     // scores
  bool causal = false;  // softmax
};

// One operator of the program at one layer.
struct Step {
  Op op = Op::embed;
  int layer = -1;  // -1: of the whole model
  Few<Stage, 2> in, out;
  Few<const Weight*, 3> weights;
  Params params;
  bool want = true;  // false: nobody looks at the outputs, a backend need not store them
};

}  // namespace moe_diag
