// SPDX-License-Identifier: MIT
#pragma once

#include <functional>

#include "core/conformance/conformance.hpp"
#include "core/conformance/trial.hpp"

namespace moe_diag {

// The promises of core/api/backend.hpp, each in a process of its own: options once, and for each numerics what it
// computes, step by step and in passes. With numerics among the options, only these are tried.
void check_backend(TriedPlugin& plugin, const ConformanceOptions& options,
                   const std::function<void(const ConformanceCheck&)>& report);

}  // namespace moe_diag
