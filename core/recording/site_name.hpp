// SPDX-License-Identifier: MIT
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "core/api/model.hpp"
#include "core/api/stage.hpp"

namespace moe_diag {

// The stage of that name or alias. Throws Error(usage) that begins with `where` and has the nearest name.
Stage stage_named(std::string_view name, const ModelConfig& config, const std::string& where);
// "<stage>" of the whole model, or "layer_07/<stage>". The same errors, and others for layers that the model has not.
Site site_named(std::string_view name, const ModelConfig& config, const std::string& where);
// The number of a layer's folder, "layer_07"; none: it is no such name.
std::optional<int> layer_of_folder(std::string_view name);

// "layer 7, <stage>"
std::string text_of(Site site);

}  // namespace moe_diag
