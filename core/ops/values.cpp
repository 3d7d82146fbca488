// SPDX-License-Identifier: MIT
#include "core/ops/values.hpp"

#include <array>
#include <cstddef>
#include <numeric>

#include "core/ops/sizes.hpp"

namespace moe_diag::host {

Values values_of(const Tensor& tensor, std::int64_t first, std::int64_t count) {
  const std::int64_t rows = tensor.shape.rank == 0 ? 0 : tensor.shape[0];
  if (first < 0 || count < 0 || first + count > rows) refuse("values", "rows", rows, first + count);
  const std::int64_t from = first * tensor.shape.row(), n = count * tensor.shape.row();
  return with_values(tensor, from, [&](const auto* p) { return Values(p, p + n); });
}
Values values_of(const Tensor& tensor) { return values_of(tensor, 0, tensor.shape.rank == 0 ? 0 : tensor.shape[0]); }

// In partial sums: shorter chains of roundings, and the compiler can put them into vectors.
double dot(std::span<const double> a, std::span<const double> b) {
  expect("dot", "values", size_of(a), size_of(b));
  constexpr std::size_t width = 16;
  std::array<double, width> sums{};
  std::size_t k = 0;
  for (; k + width <= a.size(); k += width)
    for (std::size_t i = 0; i < width; ++i) sums[i] += a[k + i] * b[k + i];
  for (; k < a.size(); ++k) sums[k % width] += a[k] * b[k];
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

}  // namespace moe_diag::host
