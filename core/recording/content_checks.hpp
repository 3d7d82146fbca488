// SPDX-License-Identifier: MIT
#pragma once

#include <string>

#include "core/recording/call_table.hpp"
#include "core/recording/row_source.hpp"

namespace moe_diag {

// Looks at rows for what betrays a recording that is not what the engine computed. Throws Error(usage). Values that are
// not finite pass: they are what people look for. Returns what was looked at, as a sentence.
//
// - Ids of every row: in range, each once, not all 0, and no strided view that was dumped flat.
// - The first and the last row of calls: not all 0. Of every call, or, where there are many calls and stages, of every
//   n-th call of a stage, another n-th of each: 65536 rows of each kind in all, of which mostly one value is read.
// - 16-bit values of eight calls of each stage: bf16 taken for f16 and the other way round.
std::string check_content(const RowSource& source, const CallTable& table, const RowRules& rules, bool zeros_ok);

}  // namespace moe_diag
