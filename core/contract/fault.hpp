// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <vector>

#include "core/contract/contract.hpp"
#include "core/ops/fault.hpp"

namespace moe_diag {

// The stages at which the fault can be planted: "every stage but moe_router_indices".
std::string fitting_stages(Fault::Kind kind, Stages stages);

// The positions, of a sequence of so many tokens, whose values at its site the fault can change.
std::vector<int> positions_changed(const FaultSpec& fault, int tokens);

// The columns of K, or the slots, that partial_sum is about, of so many.
std::vector<int> part_of(const FaultSpec& fault, int count);

}  // namespace moe_diag
