// SPDX-License-Identifier: MIT
#pragma once

// Catch2 v2 (Debian 12) and v3 (Ubuntu 24.04) name their headers differently.
#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
using Catch::Approx;  // as v2 has it
namespace Catch::Matchers {
// By value and as literals: else v3's own, which looks for an element of a range, is the better match.
inline auto Contains(std::string text) { return ContainsSubstring(text); }
inline auto Contains(const char* text) { return ContainsSubstring(text); }
}  // namespace Catch::Matchers
#else
#include <catch2/catch.hpp>
#endif
