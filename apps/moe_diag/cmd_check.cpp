// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <memory>

#include "apps/moe_diag/commands.hpp"
#include "apps/moe_diag/contract_options.hpp"
#include "core/run/run.hpp"

namespace moe_diag {

void add_check(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand("check", "Check contracts against their models and plugins; computes nothing");
  auto arguments = std::make_shared<ContractArguments>();
  add_contract_options(*command, *arguments, Contracts::several);
  command->footer(
      "Finds every mistake that can be found without computing: the YAML, the names, the selections against the "
      "model,\n"
      "the options of lanes and sinks. Exit 0 when there is none, even when the model or a backend is absent: that is\n"
      "said, and what needs it would be untested.");
  command->callback([arguments, &context] {
    PluginHost host(context.plugin_dirs);
    ModelCache models;
    RunOptions options;
    options.models = &models;
    for (const Contract& contract : read(*arguments)) {
      const std::vector<std::string> absent = check_contract(contract, host, options);
      fmt::print("{}: right: {} prompts, {} lanes, {} captures, {} falsifiers\n", contract.path,
                 contract.prompts.size(), contract.lanes.size(), contract.capture.size(), contract.falsifiers.size());
      for (const std::string& what : absent) fmt::print("absent     {}\n", what);
    }
  });
}

}  // namespace moe_diag
