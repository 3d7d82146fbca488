// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
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
  std::optional<std::string> out;
  std::string json;
  std::vector<std::string> inject;
  bool overwrite = false, controls = false;
  int threads = 0;
};

// A lane that states its threads keeps them; one whose backend has none never reads this.
void set_default_threads(Contract& contract, int threads) {
  if (threads > 0)
    for (LaneSpec& lane : contract.lanes) lane.options.add_default("threads", std::to_string(threads));
}

void check_can_write(const std::string& file) {
  const std::string folder = std::filesystem::path(file).parent_path().string();
  if (::access(folder.empty() ? "." : folder.c_str(), W_OK) != 0)
    throw Error(ErrorKind::environment, fmt::format("{}: cannot be written there: {}; choose another place with --json",
                                                    file, std::strerror(errno)));
}

// Before anything is computed: a verdict of an earlier run is not replaced unasked, nor is a sink's output by the
// verdict.
void check_outputs(const RunArguments& arguments, const Contract& contract, const std::string& verdict_file) {
  if (std::filesystem::exists(verdict_file) && !arguments.overwrite)
    throw Error(ErrorKind::usage,
                verdict_file +
                    ": the verdict of an earlier run is there; choose another --out, or replace it with --overwrite");
  for (const SinkSpec& sink : contract.sinks)
    for (const Options::Entry& entry : sink.options.entries())
      if (std::filesystem::path(entry.value).lexically_normal() == "verdict.json")
        throw Error(ErrorKind::usage,
                    fmt::format("{}: sink '{}': verdict.json is the name of the verdict itself: choose "
                                "another",
                                entry.where, sink.name));
  if (!arguments.json.empty() && arguments.json != "-") check_can_write(arguments.json);
}

// Files first: whoever reads the report may stop reading at any line.
void deliver(const Verdict& verdict, const RunArguments& arguments, const std::string& verdict_file, bool details) {
  const std::string json = json_report(verdict, MOE_DIAG_VERSION);
  std::filesystem::create_directories(std::filesystem::path(verdict_file).parent_path());
  write_whole_file(verdict_file, json);
  if (!arguments.json.empty() && arguments.json != "-") write_whole_file(arguments.json, json);
  const std::string text =
      arguments.json == "-" ? json : console_report(verdict, details) + "verdict    " + verdict_file + '\n';
  // A reader that went away is no failure of the run; any other is found when main flushes.
  std::fwrite(text.data(), 1, text.size(), stdout);
}

ExitCode run(const RunArguments& arguments, const Context& context) {
  PluginHost host(context.plugin_dirs);
  Contract contract = read(arguments.contract);
  set_default_threads(contract, arguments.threads);

  RunOptions options;
  options.out = arguments.out.value_or("moe-diag-out/" + contract.metadata.id);
  if (options.out.empty()) throw Error(ErrorKind::usage, "--out: expected the name of a folder, found nothing");
  options.overwrite = arguments.overwrite;
  options.controls = arguments.controls;
  options.tool_version = MOE_DIAG_VERSION;
  for (const std::string& text : arguments.inject) options.inject.push_back(parse_fault(text, contract));
  const std::string verdict_file = options.out + "/verdict.json";
  check_outputs(arguments, contract, verdict_file);

  ProgressLine line;
  if (line.is_visible()) options.progress = [&](const Progress& p) { line.show(p.what, p.done, p.total); };
  const Verdict verdict = run_contract(contract, host, options);
  line.clear();
  deliver(verdict, arguments, verdict_file, context.verbosity > 0);
  return exit_code_of(verdict);
}

}  // namespace

void add_run(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand("run", "Run a contract and judge its falsifiers");
  auto arguments = std::make_shared<RunArguments>();
  add_contract_options(*command, arguments->contract);
  command->add_option("--out", arguments->out, "Folder of all outputs [moe-diag-out/<contract id>]")->type_name("DIR");
  command->add_flag("--overwrite", arguments->overwrite,
                    "Replace the verdict and the captures of an earlier run in it");
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
      "Whatever was judged is written to <out>/verdict.json.");
  command->callback([arguments, &context] { context.exit_code = run(*arguments, context); });
}

}  // namespace moe_diag
