// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <vector>

#include "core/recording/row_source.hpp"

namespace moe_diag {

// Looks at the ids of experts of every row of a site. Throws Error(usage) with the likely mistake.
//
// A strided view that was dumped flat has, instead of the k best of each row, the sorted ids of all experts of the
// first rows, k at a time. So all ids of a call up to the number of experts are different, which chance does not do: it
// is refused where the chance is below one in a million. Where the scores of the same layer are recorded and their
// largest are the ids, the ids are sound all the same.
void check_ids(const RowSource& source, std::size_t site, const std::vector<RecordedCall>& calls,
               const RowRules& rules);

}  // namespace moe_diag
