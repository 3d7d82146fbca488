// SPDX-License-Identifier: MIT
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "core/contract/contract.hpp"

namespace moe_diag {

std::vector<std::string> metric_names();
// The stages that fit, for messages: "every stage but moe_router_indices".
std::string stages_listed(Stages stages, const std::function<bool(Stage)>& fit);
// The stages at which the metric can be computed, listed as above.
std::string fitting_stages(Metric metric, Stages stages);

// Why the bound is no claim about the metric (it holds or fails whatever is computed, or points the wrong way); empty
// when it is one.
std::string objection(Metric metric, const Bound& bound);

}  // namespace moe_diag
