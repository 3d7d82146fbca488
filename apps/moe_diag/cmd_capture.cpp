// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <memory>

#include "apps/moe_diag/commands.hpp"
#include "apps/moe_diag/contract_options.hpp"
#include "apps/moe_diag/exit_code.hpp"
#include "apps/moe_diag/interrupt.hpp"
#include "apps/moe_diag/run_outputs.hpp"
#include "apps/moe_diag/run_settings.hpp"
#include "core/report/report.hpp"
#include "core/run/output_places.hpp"

namespace moe_diag {
namespace {

struct CaptureArguments {
  ContractArguments contract;
  RunSettings settings;
};

// The contract with what is captured whatever the verdict.
Contract sinks_only(Contract contract) {
  auto& captures = contract.capture;
  captures.erase(std::remove_if(captures.begin(), captures.end(),
                                [](const CaptureSpec& c) { return c.when == CaptureSpec::When::falsified; }),
                 captures.end());
  contract.falsifiers.clear();
  if (captures.empty())
    throw Error(
        ErrorKind::usage,
        contract.path + ": there is nothing to capture: add a 'capture' that is not 'when: falsified', or use 'run'");
  return contract;
}

ExitCode capture(const CaptureArguments& arguments, const Context& context) {
  PluginHost host(context.plugin_dirs);
  Contract contract = sinks_only(read(arguments.contract, host).front());
  set_default_threads(contract, arguments.settings.threads);
  const std::string out = folder_of(arguments.settings, contract, false);
  check_apart(output_places(contract, host, out, false));
  note_interrupts();
  const Verdict verdict = run_watched(contract, host, options_of(arguments.settings, contract, out));
  print(capture_report(verdict));
  return exit_code_of(verdict);
}

}  // namespace

void add_capture(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand("capture", "Feed a contract's sinks; judge nothing");
  auto arguments = std::make_shared<CaptureArguments>();
  add_contract_options(*command, arguments->contract);
  add_run_settings(*command, arguments->settings);
  command->footer(
      "Falsifiers are not looked at, nor captures `when: falsified`, and no verdict is written. Exit 0 when all was\n"
      "captured, 3 when something was not there (a model, a lane's device), 4 when the environment failed.\n\n"
      "Example:\n"
      "  moe-diag capture contracts/quickstart.yaml --out out/first");
  command->callback([arguments, &context] { context.exit_code = capture(*arguments, context); });
}

}  // namespace moe_diag
