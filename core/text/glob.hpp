// SPDX-License-Identifier: MIT
#pragma once

#include <string_view>

namespace moe_diag {

// True when `text` is what the glob says: `*` stands for any text, `?` for one character.
bool glob_matches(std::string_view glob, std::string_view text);

}  // namespace moe_diag
