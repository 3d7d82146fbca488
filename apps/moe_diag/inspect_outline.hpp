// SPDX-License-Identifier: MIT
#pragma once

#include <string>

namespace moe_diag {

// Prints what a GGUF file holds that no model can be made of: its metadata and tensors, as text or as JSON; that has
// `why`, too. Nothing, when not even that can be read.
void print_outline(const std::string& path, const std::string& why, bool json);

}  // namespace moe_diag
