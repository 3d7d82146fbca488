// SPDX-License-Identifier: MIT
#pragma once

#include <string>

#include "core/verdict/verdict.hpp"

namespace moe_diag {

// What a diagnosis says, for people.

// "scale: multiplied by 2", with what became NaN or Inf; of a place that somebody else names.
std::string cause_text(const Divergence& divergence);
// "scale at layer 2, moe_expert_out: multiplied by 2", or "drift: no step ...": why the falsifier is falsified.
std::string cause_text(const Verdict& verdict, const Judgement& judgement);

// The divergence at the very place where the falsifier first fails; null: it fails for another reason.
const Divergence* own_divergence(const Verdict& verdict, const Judgement& judgement);

// The same with a line for each of its parts, to be put behind a key of a block.
std::string in_lines(const std::string& text);

// Where a divergence is, and what it is; a line each, indented by two.
std::string divergence_block(const Verdict& verdict, const Divergence& divergence);
// The same without its place: what is known of the step.
std::string step_block(const Verdict& verdict, const Divergence& divergence);
// In one line.
std::string divergence_line(const Verdict& verdict, const Divergence& divergence);

// Free, step and expected errors of a stage over the layers; the middle of many is left out. `marked`: a layer to be
// shown with those beside it, or -1.
std::string curve_block(const Verdict& verdict, const Curve& curve, int marked);
// Where each lane's values stop being finite, and how that spreads: a few lines.
std::string nonfinite_block(const Verdict& verdict);
// In one line: where the oracle itself is not finite, and why; empty: it is finite, as far as anybody looked.
std::string oracle_text(const Verdict& verdict);
// "12 of 12 at layers 0, 1, 3; 11 at layer 2": the experts that were given any row.
std::string coverage_text(const Verdict& verdict);

}  // namespace moe_diag
