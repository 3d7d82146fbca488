// SPDX-License-Identifier: MIT
#include "tests/bad_plugins/bad_plugin.hpp"

extern "C" __attribute__((visibility("default"))) int moe_diag_something_else() { return 0; }
