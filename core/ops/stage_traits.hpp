// SPDX-License-Identifier: MIT
#pragma once

#include "core/api/stage.hpp"

namespace moe_diag {

// True for the stages of the model's head, of which a pass has only the rows that somebody wants.
constexpr bool is_of_head(Stage stage) { return info(stage).scope == Scope::model && stage != Stage::embedding; }

}  // namespace moe_diag
