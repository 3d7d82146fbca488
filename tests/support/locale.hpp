// SPDX-License-Identifier: MIT
#pragma once

#include <cstdlib>
#include <string>

#include "tests/support/process.hpp"

namespace moe_diag {

// A locale with a decimal comma, made below a folder, for which no root is needed: `LOCPATH` finds it there.
// Empty when the system has no localedef or no source of it; cmake/bootstrap.sh installs both.
inline std::string make_comma_locale(const TemporaryFolder& folder) {
  const Finished made = run_command("localedef -i de_DE -f UTF-8 " + quoted(folder / "de_DE.UTF-8"));
  return made.code == 0 ? "de_DE.UTF-8" : "";
}

}  // namespace moe_diag
