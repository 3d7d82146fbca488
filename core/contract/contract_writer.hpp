// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <string_view>

#include "core/contract/contract.hpp"

namespace moe_diag {

// The contract as YAML, with a comment above it. Of a contract that has what one step alone needs: its model is a file,
// its falsifiers have one bound each, and it captures nothing. Of given values the files are named, not written.
std::string written(const Contract& contract, std::string_view comment);

}  // namespace moe_diag
