// SPDX-License-Identifier: MIT
#pragma once

#include <sys/wait.h>

#include <cstdlib>
#include <string>

#include "tests/support/temporary_folder.hpp"

namespace moe_diag {

// What a command printed, and how it ended: its exit code, or 128 + the signal that ended it.
struct Finished {
  int code = 0;
  std::string out, err;
};

// Runs a shell command.
inline Finished run_command(const std::string& command) {
  const TemporaryFolder folder;
  const int status = std::system(("(" + command + ") >" + folder / "out" + " 2>" + folder / "err").c_str());
  Finished finished;
  finished.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  finished.out = read_text(folder / "out");
  finished.err = read_text(folder / "err");
  return finished;
}

inline std::string quoted(const std::string& text) {
  std::string result = "'";
  for (char c : text) result += c == '\'' ? "'\\''" : std::string(1, c);
  return result + "'";
}

// For a shell: the runner that was built, with the plugins that were built beside it, and the notes of backends that
// are not here.
inline std::string tool() {
  return "MOE_DIAG_PLUGIN_PATH=" + quoted(MOE_DIAG_PLUGINS ":" MOE_DIAG_NOTES) + " " + quoted(MOE_DIAG_EXE);
}
inline Finished run_tool(const std::string& arguments) { return run_command(tool() + " " + arguments); }

}  // namespace moe_diag
