// SPDX-License-Identifier: MIT
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/plan/budget.hpp"

namespace moe_diag {

// The default output folder, which nobody named, holds the last run of a contract: there the next run replaces what
// provably came from one before it, without being told to.

// Whether the file is the verdict of an earlier run of the contract with this id.
bool is_verdict_of(const std::string& file, const std::string& contract_id);

// What sinks of that run left there. None when the outputs may not be replaced: there is no such verdict; it does not
// name one of them that is there, or a file among them is newer; or a sink does not say what it writes.
std::optional<std::vector<std::string>> left_by_earlier_run(const std::string& verdict, const std::string& contract_id,
                                                            const std::vector<PlannedOutput>& outputs);

}  // namespace moe_diag
