// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <string>

namespace moe_diag {

// A regular file's bytes. Throws Error(usage) when there is none, or it has more than `largest` bytes.
std::string read_bounded(const std::string& path, std::size_t largest);

}  // namespace moe_diag
