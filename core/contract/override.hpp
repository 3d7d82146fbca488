// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <utility>

#include "core/contract/document.hpp"

namespace moe_diag {

// `key.path=value`, as `--set` gives it; the value is YAML.
using Override = std::pair<std::string, std::string>;

// Replaces what the path leads to. A list's item is named by its `id` or its number from 0. The last step may be a new
// key of a map that is there. What is put in is marked with "--set PATH" as its place.
void apply_override(YamlNode& root, const Override& change, Mistakes& mistakes);

}  // namespace moe_diag
