// SPDX-License-Identifier: MIT
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace moe_diag {

// The candidate that `name` is most likely a misspelling of, whatever the case; none when all are too different.
std::optional<std::string> nearest(std::string_view name, const std::vector<std::string>& candidates);

// "unknown lane 'cudda', did you mean 'cuda'? Known: cpu, cuda"
std::string unknown(std::string_view what, std::string_view name, const std::vector<std::string>& known);

// "a, b, c"; a long list is cut, and says so.
std::string listed(const std::vector<std::string>& names);

// ASCII only, so that no locale has a say.
std::string lower(std::string_view text);

}  // namespace moe_diag
