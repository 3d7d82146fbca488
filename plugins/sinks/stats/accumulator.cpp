// SPDX-License-Identifier: MIT
#include "plugins/sinks/stats/accumulator.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace moe_diag {

namespace {

// Values that are converted once and then looked at from the first-level cache.
constexpr std::size_t block_values = 1024;
// Sums run side by side, so that they vectorise without reordering by the compiler.
constexpr std::size_t partials = 8;

struct BlockSums {
  double sum = 0, squares = 0, min = 0, max = 0;
  std::int64_t zeros = 0;
};

BlockSums sums_of(std::span<const double> v) {
  std::array<double, partials> sum{}, squares{}, low{}, high{};
  std::array<std::int64_t, partials> zeros{};
  low.fill(v[0]);
  high.fill(v[0]);
  const auto take = [&](std::size_t lane, double x) {
    sum[lane] += x;
    squares[lane] += x * x;
    low[lane] = x < low[lane] ? x : low[lane];
    high[lane] = x > high[lane] ? x : high[lane];
    zeros[lane] += x == 0;
  };
  std::size_t i = 0;
  for (; i + partials <= v.size(); i += partials)
    for (std::size_t lane = 0; lane < partials; ++lane) take(lane, v[i + lane]);
  for (; i < v.size(); ++i) take(0, v[i]);

  BlockSums total{.min = low[0], .max = high[0]};
  for (std::size_t lane = 0; lane < partials; ++lane) {
    total.sum += sum[lane];
    total.squares += squares[lane];
    total.min = std::min(total.min, low[lane]);
    total.max = std::max(total.max, high[lane]);
    total.zeros += zeros[lane];
  }
  return total;
}

double squares_around(std::span<const double> v, double centre) {
  std::array<double, partials> sum{};
  std::size_t i = 0;
  for (; i + partials <= v.size(); i += partials)
    for (std::size_t lane = 0; lane < partials; ++lane) {
      const double d = v[i + lane] - centre;
      sum[lane] += d * d;
    }
  for (; i < v.size(); ++i) sum[0] += (v[i] - centre) * (v[i] - centre);
  double total = 0;
  for (const double s : sum) total += s;
  return total;
}

}  // namespace

void ValueStats::Sum::add(double x) {
  const double next = sum_ + x;
  lost_ += std::abs(sum_) >= std::abs(x) ? (sum_ - next) + x : (x - next) + sum_;
  sum_ = next;
}

void ValueStats::add(const Tensor& tensor, std::span<const std::int32_t> positions) {
  switch (tensor.dtype) {
    case DType::f64: return add_values(tensor.as<double>(), tensor.shape.row(), positions);
    case DType::f16: return add_values(tensor.as<F16>(), tensor.shape.row(), positions);
    case DType::bf16: return add_values(tensor.as<BF16>(), tensor.shape.row(), positions);
    case DType::i32: return;  // ids are counted, not summed
    case DType::f32: return add_values(tensor.as<float>(), tensor.shape.row(), positions);
  }
}

template <class T>
void ValueStats::add_values(const T* values, std::int64_t row, std::span<const std::int32_t> positions) {
  const auto count = static_cast<std::size_t>(row) * positions.size();
  const auto place = [&](std::size_t i) {
    const auto at = static_cast<std::int64_t>(i);
    return Place{positions[static_cast<std::size_t>(at / row)], at % row};
  };
  std::array<double, block_values> finite;
  for (std::size_t start = 0; start < count; start += block_values) {
    const T* block = values + start;
    const std::size_t size = std::min(block_values, count - start);
    int other = 0;
    for (std::size_t i = 0; i < size; ++i) {
      finite[i] = static_cast<double>(block[i]);
      other |= !(std::abs(finite[i]) <= std::numeric_limits<double>::max());
    }
    std::size_t kept = size;
    if (other) {
      kept = 0;
      for (std::size_t i = 0; i < size; ++i) {
        const double x = static_cast<double>(block[i]);
        if (std::isfinite(x)) {
          finite[kept++] = x;
          continue;
        }
        if (auto& first = std::isnan(x) ? first_nan_ : first_inf_; !first) first = place(start + i);
        ++(std::isnan(x) ? nan_ : inf_);
      }
    }
    if (kept == 0) continue;
    const double before = absmax_;
    add_block({finite.data(), kept});
    if (absmax_ == before) continue;
    const auto* at =
        std::find_if(block, block + size, [&](T x) { return std::abs(static_cast<double>(x)) == absmax_; });
    absmax_at_ = place(start + static_cast<std::size_t>(at - block));
  }
}

void ValueStats::add_block(std::span<const double> v) {
  const BlockSums block = sums_of(v);
  const auto n = static_cast<double>(v.size()), before = static_cast<double>(finite_);
  const double block_mean = block.sum / n, delta = block_mean - mean_;
  squares_of_deviations_ += squares_around(v, block_mean) + delta * delta * (before * n / (before + n));
  mean_ += delta * (n / (before + n));
  sum_.add(block.sum);
  squares_.add(block.squares);
  min_ = finite_ == 0 ? block.min : std::min(min_, block.min);
  max_ = finite_ == 0 ? block.max : std::max(max_, block.max);
  absmax_ = std::max(absmax_, std::max(std::abs(block.min), std::abs(block.max)));
  zeros_ += block.zeros;
  finite_ += static_cast<std::int64_t>(v.size());
}

std::optional<double> ValueStats::mean() const { return if_any(sum_.value() / static_cast<double>(finite_)); }
std::optional<double> ValueStats::std() const {
  return if_any(std::sqrt(squares_of_deviations_ / static_cast<double>(finite_)));
}
std::optional<double> ValueStats::l2() const { return if_any(std::sqrt(squares_.value())); }
std::optional<double> ValueStats::rms() const {
  return if_any(std::sqrt(squares_.value() / static_cast<double>(finite_)));
}

void IndexStats::add(const Tensor& tensor) {
  const auto n = tensor.shape.count();
  seen_.insert(tensor.as<std::int32_t>(), tensor.as<std::int32_t>() + n);
  count_ += n;
}

}  // namespace moe_diag
