// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <exception>
#include <string>

#include "apps/moe_diag/command_line.hpp"
#include "apps/moe_diag/commands.hpp"
#include "apps/moe_diag/contract_options.hpp"
#include "apps/moe_diag/exit_code.hpp"
#include "core/api/abi.hpp"

namespace moe_diag {
namespace {

constexpr auto footer = R"(Start here:
  moe-diag check {0}/quickstart.yaml     is the contract right?
  moe-diag plan {0}/quickstart.yaml      what will it compute, and for how long?
  moe-diag run {0}/quickstart.yaml       run it, judge it
  moe-diag stages                              what can be looked at
  moe-diag inspect MODEL.gguf                  what is in a model

Exit codes: 0 all held, 1 something falsified or vacuous, 2 contract or command line wrong, 3 something untested,
4 the environment failed (plugin refused, corrupt model, disk, interrupted). Contracts: {0}/README.md.

Outputs of all subcommands: a file that is there is replaced only with --overwrite (or where an earlier run left it in
the default folder), one that is read never; links are followed, a FIFO or a device is written through: docs/files.md.)";

int parse_and_run(int argc, char** argv) {
  Context context;
  CLI::App app("Do two ways of computing a Mixture-of-Experts model agree? If not: where, and how badly.", "moe-diag");
  app.set_version_flag("-V,--version", fmt::format("moe-diag {} (plugin ABI {}, {})", MOE_DIAG_VERSION, abi_version,
                                                   MOE_DIAG_BUILD_STAMP));
  app.add_option("--plugin-dir", context.plugin_dirs, "Folder of plugins; replaces the usual ones, may be repeated")
      ->type_name("DIR")
      ->allow_extra_args(false);
  app.add_flag_callback("-v,--verbose", context.be_verbose(), "Say more, where a command has more to say");
  app.footer(fmt::format(footer, contracts_folder()));
  app.require_subcommand(1);
  app.fallthrough();
  for (auto* add : {add_run, add_check, add_plan, add_capture, add_digest, add_repro, add_cases, add_judge, add_stages,
                    add_maps, add_plugins, add_inspect, add_synth, add_new})
    add(app, context);
  try {
    app.parse(words_for_cli11(argc, argv, app));
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() != 0)
      if (const std::string mistake = misspelt_option(app); !mistake.empty()) throw Error(ErrorKind::usage, mistake);
    return app.exit(e) == 0 ? exit_held : exit_usage;
  }
  return context.exit_code;
}

}  // namespace
}  // namespace moe_diag

// A closed or full standard error takes nothing away from the exit code.
static void tell(const char* kind, const char* what) { std::fprintf(stderr, "moe-diag: %s%s\n", kind, what); }

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);  // whoever reads the report may stop early; the exit code stands
  std::signal(SIGXFSZ, SIG_IGN);  // a limit on the size of files is told as a full disk is
  try {
    const int code = moe_diag::parse_and_run(argc, argv);
    if (std::ferror(stdout) == 0 && std::fflush(stdout) == 0) return code;
    if (errno == EPIPE) return code;
    throw moe_diag::Error(moe_diag::ErrorKind::environment,
                          std::string("cannot write to standard output: ") + std::strerror(errno));
  } catch (const moe_diag::Error& e) {
    tell("", e.what());
    return moe_diag::exit_code_of(e);
  } catch (const std::exception& e) {
    tell("unexpected: ", e.what());
    return moe_diag::exit_environment;
  }
}
