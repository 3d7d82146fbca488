// SPDX-License-Identifier: MIT
#include "tests/bad_plugins/bad_plugin.hpp"

extern "C" {
__attribute__((visibility("default"), used)) const void* moe_diag_manifest = &moe_diag::good_manifest;
}
