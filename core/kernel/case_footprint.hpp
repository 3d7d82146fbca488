// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <vector>

#include "core/kernel/judged_case.hpp"

namespace moe_diag {

// Which rows, columns and experts fail. Experts are named only where chance is an unlikely reason: they choose by
// themselves which rows have them.
CaseFootprint footprint_of(const CaseIndex& index, const JudgedCase& judged);

// "all 7 rows", "rows 0, 3 to 5 of 7"
std::string rows_text(const CaseFootprint& footprint, int rows);
// "all 256 columns", "columns 128 to 255 of 256, where 0 was written", "94 of 256 columns, from 3 to 250"
std::string columns_text(const CaseFootprint& footprint);
// "expert 5: all rows that fail chose it, and no other row did"; empty: nothing separates them.
std::string experts_text(const CaseIndex& index, const CaseFootprint& footprint);

// The part of the numbers of rows in it, a sentence for each layer and routing where the same rows are right in
// one case and wrong in another: "layer 3: wrong only below 16 rows (at 1 and 7, right at 16 and 64)".
std::vector<std::string> row_count_texts(const std::vector<JudgedCase>& cases);

}  // namespace moe_diag
