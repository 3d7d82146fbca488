// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "apps/moe_diag/commands.hpp"
#include "apps/moe_diag/contract_options.hpp"
#include "apps/moe_diag/exit_code.hpp"
#include "apps/moe_diag/progress_line.hpp"
#include "core/api/output_file.hpp"
#include "core/report/report.hpp"
#include "core/run/run.hpp"

namespace moe_diag {
namespace {

struct RunArguments {
  ContractArguments contract;
  std::string out, json;
  std::vector<std::string> inject;
  bool overwrite = false, controls = false;
  int threads = 0;
};

// A lane that states its threads keeps them; one whose backend has none never reads this.
void set_default_threads(Contract& contract, int threads) {
  if (threads > 0)
    for (LaneSpec& lane : contract.lanes) lane.options.add_default("threads", std::to_string(threads));
}

void write_verdict(const std::string& folder, const std::string& text) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error)
    throw Error(ErrorKind::environment, fmt::format("{}: cannot make the output folder: {}; choose another with --out",
                                                    folder, error.message()));
  write_whole_file(folder + "/verdict.json", text);
}

ExitCode run(const RunArguments& arguments, const Context& context) {
  PluginHost host(context.plugin_dirs);
  Contract contract = read(arguments.contract);
  set_default_threads(contract, arguments.threads);

  RunOptions options;
  options.out = arguments.out.empty() ? "moe-diag-out/" + contract.metadata.id : arguments.out;
  options.overwrite = arguments.overwrite;
  options.controls = arguments.controls;
  options.tool_version = MOE_DIAG_VERSION;
  for (const std::string& text : arguments.inject) options.inject.push_back(parse_fault(text, contract));

  ProgressLine line;
  if (line.is_visible()) options.progress = [&](const Progress& p) { line.show(p.what, p.done, p.total); };
  const Verdict verdict = run_contract(contract, host, options);

  const std::string json = json_report(verdict, MOE_DIAG_VERSION);
  fmt::print("{}", arguments.json == "-" ? json : console_report(verdict, context.verbosity > 0));
  std::fflush(stdout);
  write_verdict(options.out, json);
  if (!arguments.json.empty() && arguments.json != "-") write_whole_file(arguments.json, json);
  if (arguments.json != "-") fmt::print("verdict    {}/verdict.json\n", options.out);
  return exit_code_of(verdict);
}

}  // namespace

void add_run(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand("run", "Run a contract and judge its falsifiers");
  auto arguments = std::make_shared<RunArguments>();
  add_contract_options(*command, arguments->contract);
  command->add_option("--out", arguments->out, "Folder of all outputs [moe-diag-out/<contract id>]")->type_name("DIR");
  command->add_flag("--overwrite", arguments->overwrite, "Replace captures of an earlier run in it");
  command->add_flag("--controls", arguments->controls,
                    "Also plant every control: a falsifier that survives one is vacuous");
  command
      ->add_option("--inject", arguments->inject,
                   "Plant a fault: '{inject: nan, stage: moe_expert_out, layer: 6, lane: cuda}'")
      ->type_name("FAULT")
      ->allow_extra_args(false);
  command->add_option("--threads", arguments->threads, "Threads of lanes that do not state theirs")
      ->check(CLI::Range(1, 256));
  command
      ->add_option("--json", arguments->json, "Write the verdict as JSON here, too; - prints it instead of the report")
      ->type_name("FILE");
  command->footer(
      "Examples:\n"
      "  moe-diag run contracts/quickstart.yaml --controls\n"
      "  moe-diag run contracts/quickstart.yaml --set 'model={gguf: /models/qwen3-moe.gguf}' --threads 4\n"
      "  moe-diag run contracts/quickstart.yaml --inject '{inject: scale, stage: moe_expert_out, layer: 2, lane: "
      "step}'\n"
      "The verdict is always written to <out>/verdict.json.");
  command->callback([arguments, &context] { context.exit_code = run(*arguments, context); });
}

}  // namespace moe_diag
