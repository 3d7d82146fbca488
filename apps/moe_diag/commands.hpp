// SPDX-License-Identifier: MIT
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace moe_diag {

// What all subcommands share. `exit_code` is what main returns; a subcommand's callback sets it.
struct Context {
  std::vector<std::string> plugin_dirs;  // --plugin-dir
  int verbosity = 0;                     // -v
  int exit_code = 0;
};

// One function a subcommand, in its own file cmd_<subcommand>.cpp: declares its options and sets its callback.
void add_run(CLI::App& app, Context& context);
void add_plan(CLI::App& app, Context& context);
void add_capture(CLI::App& app, Context& context);
void add_digest(CLI::App& app, Context& context);
void add_repro(CLI::App& app, Context& context);
void add_check(CLI::App& app, Context& context);
void add_stages(CLI::App& app, Context& context);
void add_plugins(CLI::App& app, Context& context);
void add_inspect(CLI::App& app, Context& context);
void add_synth(CLI::App& app, Context& context);
void add_new(CLI::App& app, Context& context);

}  // namespace moe_diag
