// SPDX-License-Identifier: MIT
#include <memory>

#include "apps/moe_diag/commands.hpp"
#include "apps/moe_diag/contract_options.hpp"
#include "apps/moe_diag/run_outputs.hpp"
#include "apps/moe_diag/run_settings.hpp"
#include "core/contract/pick.hpp"
#include "core/report/plan_report.hpp"
#include "core/run/output_places.hpp"

namespace moe_diag {
namespace {

struct PlanArguments {
  ContractArguments contract;
  std::vector<std::string> only;
  std::string out;
  int threads = 0;
  bool json = false;
};

void plan(const PlanArguments& arguments, const Context& context) {
  PluginHost host(context.plugin_dirs);
  std::vector<Contract> contracts = read(arguments.contract, host);
  keep_only(contracts, arguments.only);
  set_default_threads(contracts.front(), arguments.threads);
  RunOptions options;
  options.out = arguments.out.empty() ? "moe-diag-out/" + contracts.front().metadata.id : arguments.out;
  options.is_default_out = arguments.out.empty();
  check_apart(output_places(contracts.front(), host, options.out, true));
  options.controls = true;  // so that those that cannot be planted are refused here, too
  const PlanReport report = plan_contract(contracts.front(), host, options);
  print(arguments.json ? plan_json(report, MOE_DIAG_VERSION) : plan_report(report));
}

}  // namespace

void add_plan(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand("plan", "Say what a run would do: lanes, samples, bytes, memory, time");
  auto arguments = std::make_shared<PlanArguments>();
  add_contract_options(*command, arguments->contract);
  command->add_option("--only", arguments->only, "Only these falsifiers, as in run")
      ->type_name("PATTERN")
      ->allow_extra_args(false);
  command->add_option("--out", arguments->out, "Folder that a run would write to [moe-diag-out/<contract id>]")
      ->type_name("DIR");
  command->add_option("--threads", arguments->threads, "Threads of lanes that do not state theirs")
      ->check(CLI::Range(1, 256));
  command->add_flag("--json", arguments->json, "Print JSON");
  command->footer(
      "Nothing is judged or written. To say how long it takes, each lane computes the embedding and one layer of at "
      "most\n"
      "eight tokens, a few times; the rest follows from the weights and products of all layers. It is right within a\n"
      "factor of three on a machine that does nothing else, when the weights are in memory already.");
  command->callback([arguments, &context] { plan(*arguments, context); });
}

}  // namespace moe_diag
