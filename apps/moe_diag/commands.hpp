// SPDX-License-Identifier: MIT
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace moe_diag {

// What all subcommands share. `exit_code` is what main returns; a subcommand's callback sets it.
struct Context {
  std::vector<std::string> plugin_dirs;  // --plugin-dir
  bool verbose = false;                  // -v
  int exit_code = 0;

  // For the flag -v, which the program and some commands have. A variable that several flags are bound to is set anew
  // by each, from CLI11 2.4 on also by those that are not given.
  auto be_verbose() {
    return [this] { verbose = true; };
  }
};

// One function a subcommand, in its own file cmd_<subcommand>.cpp: declares its options and sets its callback.
void add_run(CLI::App& app, Context& context);
void add_plan(CLI::App& app, Context& context);
void add_capture(CLI::App& app, Context& context);
void add_digest(CLI::App& app, Context& context);
void add_repro(CLI::App& app, Context& context);
void add_check(CLI::App& app, Context& context);
void add_stages(CLI::App& app, Context& context);
void add_maps(CLI::App& app, Context& context);
void add_plugins(CLI::App& app, Context& context);
void add_inspect(CLI::App& app, Context& context);
void add_synth(CLI::App& app, Context& context);
void add_cases(CLI::App& app, Context& context);
void add_judge(CLI::App& app, Context& context);
void add_new(CLI::App& app, Context& context);

}  // namespace moe_diag
