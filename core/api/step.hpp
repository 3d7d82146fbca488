// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <initializer_list>
#include <type_traits>
#include <variant>

#include "core/api/cache.hpp"
#include "core/api/model.hpp"
#include "core/api/op.hpp"
#include "core/api/params.hpp"
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

  friend constexpr bool operator==(const Few& a, const Few& b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end());
  }

 private:
  std::array<T, N> items_{};
  std::size_t size_ = 0;
};

inline constexpr std::size_t most_inputs = 6, most_outputs = 2, most_weights = 4, most_caches = 2;  // of a step

// A cache that a step reads, of all positions up to the last of the pass.
struct CacheUse {
  Cache cache;
  int input = -1;  // the input whose rows of the pass it gets before; -1: the operator itself moves a state on
  int column = 0;  // the first column that goes into it, of as many as a row of the cache has

  friend constexpr bool operator==(const CacheUse&, const CacheUse&) = default;
};

// One operator of the program at one layer.
struct Step {
  Op op = Op::embed;
  int layer = -1;  // -1: of the whole model
  Few<Stage, most_inputs> in;
  Few<Stage, most_outputs> out;
  Few<const Weight*, most_weights> weights;
  Few<const Weight*, most_weights> biases;  // linear: as many as weights, or none; null where one weight has none
  Few<CacheUse, most_caches> caches;
  Params params;     // of the operator's own type
  bool want = true;  // false: nobody looks at the outputs, a backend need not store them

  // The parameters, of the type that the operator has.
  template <class P>
  constexpr const P& as() const {
    return std::get<P>(params);
  }

  // The bias of weight i; null when it has none.
  const Weight* bias(std::size_t i) const { return i < biases.size() ? biases[i] : nullptr; }

  // The cache that gets the rows of input i; null when none does. The step reads that input of all positions so far.
  const CacheUse* cached(std::size_t i) const {
    for (const CacheUse& use : caches)
      if (use.input == static_cast<int>(i)) return &use;
    return nullptr;
  }

  friend bool operator==(const Step&, const Step&) = default;
};

static_assert(std::is_trivially_copyable_v<Step>, "steps are plain data");

}  // namespace moe_diag
