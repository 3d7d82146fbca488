// SPDX-License-Identifier: MIT
#pragma once

#include <vector>

#include "core/contract/pick.hpp"
#include "core/verdict/verdict.hpp"

namespace moe_diag {

// Marks what is untested, or was not captured, and may be. `lane:NAME` allows it where every lane that is missing is
// that one, or one that it feeds. What was to be captured from a model that is absent may be missing when all the
// contract's falsifiers may. `*` allows whatever is missing.
void allow_untested(Verdict& verdict, const std::vector<Pattern>& patterns);

}  // namespace moe_diag
