// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <vector>

#include "core/kernel/judged_case.hpp"
#include "core/kernel/span.hpp"

namespace moe_diag {

// Names the cause of what fails, in the cases of one layer: of one step as an explanation of that step; of several, by
// computing the span with one mistake at a time. A mistake has to explain every row that fails, of all cases or else
// of one, within the allowed error, and to leave a third at most of what fails without it; where several do, all are
// named, and where they are many, none is. `judged` are falsified cases of the span.
void explain_cases(const CaseIndex& index, const Model& model, const Program& program, const Span& span,
                   const std::vector<JudgedCase*>& judged);

}  // namespace moe_diag
