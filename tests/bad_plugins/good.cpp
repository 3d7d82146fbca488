// SPDX-License-Identifier: MIT
#include "tests/bad_plugins/bad_plugin.hpp"

// The control of this folder: refusing this one would be wrong.
MOE_DIAG_SINK(moe_diag::IdleSink, "bad", "does nothing, well")
