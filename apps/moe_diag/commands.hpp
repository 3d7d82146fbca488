// SPDX-License-Identifier: MIT
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "core/plugin/host.hpp"

namespace moe_diag {

// What all subcommands share. `exit_code` is what main returns; a subcommand's callback sets it.
struct Context {
  std::vector<std::string> plugin_dirs;  // --plugin-dir, before the host is asked for
  int verbosity = 0;                     // -v
  int exit_code = 0;
};

// One function a subcommand, in its own file cmd_<subcommand>.cpp: declares its options and sets its callback.
void add_inspect(CLI::App& app, Context& context);
void add_synth(CLI::App& app, Context& context);
void add_plugins(CLI::App& app, Context& context);

}  // namespace moe_diag
