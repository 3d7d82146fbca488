// SPDX-License-Identifier: MIT
#pragma once

#include "core/contract/contract.hpp"
#include "core/plugin/host.hpp"

namespace moe_diag {

// Checks the backends and sinks of a contract by what their plugins list: names that no plugin has, keys that it does
// not read, values that a key cannot have. `host` must live as long as the check.
OtherCheck plugin_check(PluginHost& host);

}  // namespace moe_diag
