// SPDX-License-Identifier: MIT
#pragma once

#include <string>

#include "core/compare/footprint.hpp"
#include "core/model/model.hpp"
#include "core/model/program.hpp"
#include "core/ops/step_case.hpp"

namespace moe_diag {

struct StepExplanation {
  StepCause cause = StepCause::none;
  std::string text;     // the cause in words; empty for none and plain_operator
  double factor = 1;    // of scale
  double error = 0;     // rms over the rows that fail, in expected errors
  double expected = 0;  // relative error of those rows, as their numerics make it
  double left = 0;      // the same, of what the cause does not explain
  Footprint footprint;
};

// Products wider than the budget are checked at elements spread evenly over the row. The same case gives the same
// answer. Throws Error(environment) when the tensors do not fit the step.
StepExplanation explain_step(const StepCase& step_case, const Model& model, const Program& program);

// A step is explained from one pass. Where a later pass, from `position` on, has another cause or none, the
// step is a plain operator, and the text says what fits the one pass.
void add_later_pass(StepExplanation& first, const StepExplanation& later, int position);

// The same of another prompt, of as many rows at least: a cause has to fit it, too, and with the same factor.
void add_other_prompt(StepExplanation& first, const StepExplanation& other, const std::string& id);

}  // namespace moe_diag
