// SPDX-License-Identifier: MIT
#include "tests/bad_plugins/bad_plugin.hpp"

// The library is in its debug mode: containers have other sizes. CMakeLists.txt has the flags.
MOE_DIAG_SINK(moe_diag::IdleSink, "bad", "built in another way")
