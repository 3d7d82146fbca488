// SPDX-License-Identifier: MIT
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/kernel/span_values.hpp"

namespace moe_diag {

// One mistake in the plain program of a span: what one or more of its steps read, or what one of them writes, is
// another.
struct SpanMistake {
  std::string text;
  std::size_t from = 0;  // the first step that computes something else
  // Changes what step i reads; empty: nothing.
  std::function<void(std::size_t step, StepInputs& inputs)> inputs = {};
  // The values that step `from` writes instead, out of the right values; empty: what it computes.
  std::function<host::Values(const SpanValues& right)> output = {};
  const Fault* fault = nullptr;  // that step `from` is computed with; lives as long as the program
};

// Mistakes to be tried, the simplest first: experts computed with another one's weights, all of them or those of one
// step; weights read column by column; experts left out; and what the operators know of their own mistakes. `right`
// outlives them.
std::vector<SpanMistake> span_mistakes(const Span& span, const ModelConfig& config, const Program& program,
                                       const SpanValues& right);

// The span's output with the mistake.
host::Values output_with(const SpanMistake& mistake, const Span& span, const ModelConfig& config,
                         const SpanValues& right);

}  // namespace moe_diag
