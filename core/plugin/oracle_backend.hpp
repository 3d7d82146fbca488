// SPDX-License-Identifier: MIT
#pragma once

#include <string>

#include "core/plugin/host.hpp"

namespace moe_diag {

// The first backend by name that computes in f64. Throws Error(absent) when there is none: `purpose` says what for.
std::string oracle_backend(PluginHost& host, const std::string& purpose);

}  // namespace moe_diag
