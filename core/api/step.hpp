// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstddef>
#include <initializer_list>
#include <type_traits>

#include "core/api/model.hpp"
#include "core/api/op.hpp"
#include "core/api/stage.hpp"

namespace moe_diag {

// At most N values, in place: steps are plain data. One more throws std::out_of_range.
template <class T, std::size_t N>
class Few {
 public:
  constexpr Few() = default;
  constexpr Few(std::initializer_list<T> list) {
    for (const T& v : list) push_back(v);
  }
  constexpr void push_back(const T& value) { items_.at(size_++) = value; }
  constexpr const T* begin() const { return items_.data(); }
  constexpr const T* end() const { return items_.data() + size_; }
  constexpr std::size_t size() const { return size_; }
  constexpr const T& operator[](std::size_t i) const { return items_[i]; }

 private:
  std::array<T, N> items_{};
  std::size_t size_ = 0;
};

inline constexpr std::size_t most_inputs = 6, most_outputs = 2, most_weights = 4;  // of a step

struct Params {
  int offset = 0;             // rms_norm, rope, mix: first column read
  int width = 0;              // rms_norm: values per group
  double eps = 0;             // rms_norm
  double theta = 0;           // rope
  double scale = 1;           // scores
  bool causal = false;        // softmax
  bool renormalised = false;  // topk: the weights are divided by their sum

  friend constexpr bool operator==(const Params&, const Params&) = default;
};

// One operator of the program at one layer.
struct Step {
  Op op = Op::embed;
  int layer = -1;  // -1: of the whole model
  Few<Stage, most_inputs> in;
  Few<Stage, most_outputs> out;
  Few<const Weight*, most_weights> weights;
  Few<const Weight*, most_weights> biases;  // linear: as many as weights, or none; null where one weight has none
  Params params;
  bool want = true;  // false: nobody looks at the outputs, a backend need not store them

  // The bias of weight i; null when it has none.
  const Weight* bias(std::size_t i) const { return i < biases.size() ? biases[i] : nullptr; }
};

// Lanes compare steps byte by byte.
static_assert(std::is_trivially_copyable_v<Step>);

}  // namespace moe_diag
