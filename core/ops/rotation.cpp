// SPDX-License-Identifier: MIT
#include "core/ops/rotation.hpp"

#include <cmath>

#include "core/ops/sizes.hpp"

namespace moe_diag::host {

Values rotated(std::span<const double> x, std::int64_t block) {
  expect_multiple("rotated", "values", block, size_of(x));
  Values out(x.begin(), x.end());
  const double root = std::sqrt(static_cast<double>(block));
  for (std::size_t first = 0; first < out.size(); first += at(block)) {
    double* const b = out.data() + first;
    for (std::size_t half = 1; half < at(block); half *= 2)
      for (std::size_t i = 0; i < at(block); i += 2 * half)
        for (std::size_t j = i; j < i + half; ++j) {
          const double low = b[j], high = b[j + half];
          b[j] = low + high;
          b[j + half] = low - high;
        }
    for (std::size_t i = 0; i < at(block); ++i) b[i] /= root;
  }
  return out;
}

Values rounded_when_rotated(std::span<const double> x, Rounding rounding, std::int64_t block) {
  return block > 0 ? rotated(rounded(rotated(x, block), rounding), block) : rounded(x, rounding);
}

}  // namespace moe_diag::host
