// SPDX-License-Identifier: MIT
#pragma once

#include <functional>

#include "core/conformance/conformance.hpp"
#include "core/conformance/trial.hpp"

namespace moe_diag {

// What core/api/sink.hpp promises, each promise in a process of its own.
void check_sink(TriedPlugin& plugin, const std::function<void(const ConformanceCheck&)>& report);

}  // namespace moe_diag
