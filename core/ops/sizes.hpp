// SPDX-License-Identifier: MIT
#pragma once

#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "core/api/error.hpp"

// Sizes of arrays that plain operators are given: one that does not fit throws Error(environment).
namespace moe_diag::host {

inline std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }
inline std::int64_t size_of(std::span<const double> x) { return static_cast<std::int64_t>(x.size()); }

[[noreturn]] inline void refuse(std::string_view op, std::string_view what, std::int64_t expected, std::int64_t found) {
  throw Error(ErrorKind::environment, fmt::format("host {}: {}: expected {}, found {}", op, what, expected, found));
}
inline void expect(std::string_view op, std::string_view what, std::int64_t expected, std::int64_t found) {
  if (expected != found) refuse(op, what, expected, found);
}
inline void expect_multiple(std::string_view op, std::string_view what, std::int64_t unit, std::int64_t found) {
  if (unit <= 0 || found % unit != 0)
    throw Error(ErrorKind::environment,
                fmt::format("host {}: {}: expected a multiple of {}, found {}", op, what, unit, found));
}
inline void expect_below(std::string_view op, std::string_view what, std::int64_t limit, std::int64_t found) {
  if (found < 0 || found >= limit)
    throw Error(ErrorKind::environment,
                fmt::format("host {}: {}: expected 0 to {}, found {}", op, what, limit - 1, found));
}

}  // namespace moe_diag::host
