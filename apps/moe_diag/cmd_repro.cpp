// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <memory>
#include <string>

#include "apps/moe_diag/commands.hpp"
#include "apps/moe_diag/exit_code.hpp"
#include "apps/moe_diag/interrupt.hpp"
#include "apps/moe_diag/progress_line.hpp"
#include "apps/moe_diag/run_outputs.hpp"
#include "core/repro/repro.hpp"

namespace moe_diag {
namespace {

struct ReproArguments {
  std::string verdict;
  ReproOptions options;
};

ExitCode repro(const ReproArguments& arguments, const Context& context) {
  PluginHost host(context.plugin_dirs);
  const EarlierVerdict verdict = read_verdict(arguments.verdict);
  ReproOptions options = arguments.options;
  options.run.tool_version = MOE_DIAG_VERSION;
  note_interrupts();
  options.run.interrupted = is_interrupted;
  ProgressLine line;
  if (line.is_visible()) options.run.progress = [&](const Progress& p) { line.show(p); };
  try {
    const Repro repro = reproduce(verdict, host, options);
    line.clear();
    if (repro.written) {
      print(repro.text);
      return exit_held;
    }
    fmt::print(stderr, "moe-diag: nothing was written: {}", repro.text);
  } catch (const Error& e) {
    line.clear();
    if (e.kind() != ErrorKind::absent) throw;
    fmt::print(stderr, "moe-diag: nothing was written: {}\n", e.what());
  }
  return exit_untested;
}

}  // namespace

void add_repro(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand("repro", "Write the step that is at fault as a small case, to be run alone");
  auto arguments = std::make_shared<ReproArguments>();
  command->add_option("verdict", arguments->verdict, "The verdict.json of a run")
      ->required()
      ->type_name("VERDICT.json");
  command
      ->add_option("--falsifier", arguments->options.falsifier,
                   "The claim whose failure is reproduced [that of the first divergence]")
      ->type_name("ID")
      ->allow_extra_args(false);
  command->add_option("--out", arguments->options.out, "The folder of the case")->required()->type_name("DIR");
  command->add_flag("--cases", arguments->options.cases,
                    "Write it as `cases` does, for a kernel of your own and `judge`, with what the lane wrote");
  command->add_flag("--overwrite", arguments->options.overwrite, "Replace the case that is there");
  command->footer(
      "The contract is run again, as the verdict says it was, to see what the step read.\n"
      "Example:\n"
      "  moe-diag repro out/verdict.json --out case\n"
      "  moe-diag run case/contract.yaml\n"
      "Exit codes: 0 the case is written, and fails when it is run; 3 nothing is: no step fails alone, or the model or "
      "a\n"
      "lane is not here; 2 the verdict does not speak of a step, or its contract or model have changed.");
  command->callback([arguments, &context] { context.exit_code = repro(*arguments, context); });
}

}  // namespace moe_diag
