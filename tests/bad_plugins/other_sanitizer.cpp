// SPDX-License-Identifier: MIT
#include "tests/bad_plugins/bad_plugin.hpp"

// Compiled with another sanitizer than the runner: it could not even be loaded. CMakeLists.txt has the flags.
MOE_DIAG_SINK(moe_diag::IdleSink, "bad", "built in another way")
