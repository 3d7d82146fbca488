// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace moe_diag {

// Text of a user, fit for a one-line message: control characters replaced, long text cut.
std::string shown(std::string_view text);

// Bytes of a file, fit for a one-line message: in quotes, all but printable ASCII escaped, long text cut.
std::string quoted_bytes(std::string_view text);

// Text of a model, fit for a one-line message: in quotes, control characters and what is not UTF-8 escaped, cut behind
// so many bytes.
constexpr std::size_t longest_quoted_line = 64;
std::string quoted_line(std::string_view text);

// Text as one word of a shell's command line, quoted where it has to be.
std::string shell_word(std::string_view text);

}  // namespace moe_diag
