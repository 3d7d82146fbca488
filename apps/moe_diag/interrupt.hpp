// SPDX-License-Identifier: MIT
#pragma once

namespace moe_diag {

// From here on SIGINT and SIGTERM are noted, so that what was done can be kept; one more, half a second or more after
// the first, ends the process at once.
void note_interrupts();
bool is_interrupted();

}  // namespace moe_diag
