// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <memory>

#include "apps/moe_diag/commands.hpp"
#include "apps/moe_diag/contract_options.hpp"
#include "apps/moe_diag/run_settings.hpp"
#include "core/report/text.hpp"
#include "core/run/output_places.hpp"
#include "core/run/run.hpp"

namespace moe_diag {
namespace {

// As `run` would write them: whatever --out is, contracts of one call have a folder each.
void check_places(const std::vector<Contract>& contracts, PluginHost& host) {
  std::vector<WrittenPlace> places;
  for (const Contract& contract : contracts) {
    const std::vector<WrittenPlace> more =
        output_places(contract, host, folder_of({}, contract, contracts.size() > 1), true);
    places.insert(places.end(), more.begin(), more.end());
  }
  check_apart(places);
}

}  // namespace

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
    const std::vector<Contract> contracts = read(*arguments, host);
    check_places(contracts, host);
    for (const Contract& contract : contracts) {
      const std::vector<std::string> absent = check_contract(contract, host, options);
      fmt::print("{}: right: {}, {}, {}, {}\n", contract.path, counted(contract.prompts.size(), "prompt"),
                 counted(contract.lanes.size(), "lane"), counted(contract.capture.size(), "capture"),
                 counted(contract.falsifiers.size(), "falsifier"));
      for (const std::string& what : absent) fmt::print("absent     {}\n", what);
    }
  });
}

}  // namespace moe_diag
