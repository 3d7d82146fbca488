// SPDX-License-Identifier: MIT
#pragma once

#include <map>
#include <string>
#include <vector>

#include "core/api/tensor.hpp"
#include "core/kernel/span_values.hpp"

namespace moe_diag {

// The relative L2 error of each row that a kernel may make in these numerics: ten times the predicted rounding, as
// everywhere. By the type that the kernel writes its output in.
using AllowedErrors = std::map<DType, std::vector<double>>;

// The types that a kernel may write its output in.
inline constexpr DType output_types[] = {DType::f64, DType::f32, DType::f16, DType::bf16};

// `exact` holds the inputs and all outputs of the steps. A span of one step errs by what its operator predicts. Of
// several, noise of the size that each step is predicted to err by goes through the steps behind it: what becomes of it
// depends on the values, which may cancel. The same values give the same errors. Throws Error(usage) for numerics that
// are not known.
AllowedErrors allowed_errors(const Span& span, const ModelConfig& config, const std::string& numerics,
                             const SpanValues& exact);

// The numerics that a kernel may be stated to have.
std::vector<std::string> known_numerics();

// The numerics of a kernel: of the named ones, with the roundings of the span's engine, and its output stored in that
// type where that engine stores it in no coarser one.
LaneNumerics kernel_numerics(const std::string& numerics, const Span& span, DType type);
// Those of what is expected: in f64, with the same roundings.
LaneNumerics expected_numerics(const Span& span);

}  // namespace moe_diag
