// SPDX-License-Identifier: MIT
#pragma once

#include <span>

#include "core/ops/operator.hpp"
#include "core/ops/values.hpp"

namespace moe_diag::host {

struct NormOptions {
  double eps = 0;
  bool normalise = true;  // false: x * w
  // Forms that engines have by mistake:
  bool plus_one = false;   // times w + 1
  bool centred = false;    // the mean is subtracted first
  bool whole_row = false;  // one group of all values, whatever the size of w
};
// Per group of w.size() values: x / sqrt(mean(x^2) + eps) * w.
Values rms_norm(std::span<const double> x, std::span<const double> w, const NormOptions& options);

}  // namespace moe_diag::host

namespace moe_diag {

extern const Operator rms_norm_op;

void add_norm_hypotheses(const Operands& operands, const FailingUnits& failing, HypothesisList& list);

// Whether a norm with another eps than the model's gives all these rows, too: it multiplies each by a factor that
// depends on its mean square.
bool may_be_eps(const StepCase& step_case, const FailingUnits& failing, double factor);

}  // namespace moe_diag
