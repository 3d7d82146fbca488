// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <optional>
#include <set>
#include <span>

#include "core/api/tensor.hpp"

namespace moe_diag {

// Where a value stands: its token, and its element within that token's row.
struct Place {
  std::int32_t position = 0;
  std::int64_t element = 0;
};

// Statistics of the values of one site, over any number of events. All in double; NaN and infinities are counted and
// enter nothing else.
class ValueStats {
 public:
  // `tensor` is f32 or f64, one row per position.
  void add(const Tensor& tensor, std::span<const std::int32_t> positions);

  std::int64_t count() const { return finite_ + nan_ + inf_; }  // all values
  std::int64_t zeros() const { return zeros_; }
  std::int64_t nan() const { return nan_; }
  std::int64_t inf() const { return inf_; }
  std::optional<Place> first_nan() const { return first_nan_; }
  std::optional<Place> first_inf() const { return first_inf_; }

  // Over the finite values; nothing when there is none.
  std::optional<double> min() const { return if_any(min_); }
  std::optional<double> max() const { return if_any(max_); }
  std::optional<double> mean() const;
  std::optional<double> std() const;  // of the population
  std::optional<double> l2() const;
  std::optional<double> rms() const;
  std::optional<double> absmax() const { return if_any(absmax_); }
  std::optional<Place> absmax_at() const { return absmax_at_; }

 private:
  // A sum that carries what rounding took from it (Neumaier).
  class Sum {
   public:
    void add(double x);
    double value() const { return sum_ + lost_; }

   private:
    double sum_ = 0, lost_ = 0;
  };

  template <class T>
  void add_values(const T* values, std::int64_t row, std::span<const std::int32_t> positions);
  void add_block(std::span<const double> finite);
  std::optional<double> if_any(double v) const { return finite_ > 0 ? std::optional(v) : std::nullopt; }

  std::int64_t finite_ = 0, zeros_ = 0, nan_ = 0, inf_ = 0;
  double min_ = 0, max_ = 0, absmax_ = -1;
  double mean_ = 0, squares_of_deviations_ = 0;  // running, for the spread (Chan, Golub, LeVeque 1983)
  Sum sum_, squares_;
  std::optional<Place> absmax_at_, first_nan_, first_inf_;
};

// The same for index stages, where only these mean something.
class IndexStats {
 public:
  void add(const Tensor& tensor);  // i32

  std::int64_t count() const { return count_; }
  std::int64_t distinct() const { return static_cast<std::int64_t>(seen_.size()); }
  std::optional<std::int32_t> min() const { return seen_.empty() ? std::nullopt : std::optional(*seen_.begin()); }
  std::optional<std::int32_t> max() const { return seen_.empty() ? std::nullopt : std::optional(*seen_.rbegin()); }

 private:
  std::int64_t count_ = 0;
  std::set<std::int32_t> seen_;
};

}  // namespace moe_diag
