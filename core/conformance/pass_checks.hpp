// SPDX-License-Identifier: MIT
#pragma once

#include "core/conformance/tried_lane.hpp"

// Checks of passes through the whole program, and of what a lane shows and takes besides.
namespace moe_diag {

Seen opens_what_it_claims(BackendTrial& t);
Seen passes_are_right(BackendTrial& t);
Seen sequences_are_separate(BackendTrial& t);
Seen passes_of_any_length(BackendTrial& t);
Seen observed_or_not(BackendTrial& t);
Seen reads_what_was_written(BackendTrial& t);
Seen shows_its_caches(BackendTrial& t);

}  // namespace moe_diag
