// SPDX-License-Identifier: MIT
#pragma once

#include <span>

#include "core/ops/operator.hpp"
#include "core/ops/values.hpp"

namespace moe_diag::host {

struct NormOptions {
  double eps = 0;
  bool normalise = true;  // false: x * w
};
// Per group of w.size() values: x / sqrt(mean(x^2) + eps) * w.
Values rms_norm(std::span<const double> x, std::span<const double> w, const NormOptions& options);

}  // namespace moe_diag::host

namespace moe_diag {

extern const Operator rms_norm_op;

}  // namespace moe_diag
