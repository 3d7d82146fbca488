// SPDX-License-Identifier: MIT
#include "tests/bad_plugins/bad_plugin.hpp"

// Strings are those of before C++11. CMakeLists.txt has the flags.
MOE_DIAG_SINK(moe_diag::IdleSink, "bad", "built in another way")
