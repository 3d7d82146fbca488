// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "apps/moe_diag/commands.hpp"
#include "apps/moe_diag/contract_options.hpp"
#include "apps/moe_diag/exit_code.hpp"
#include "apps/moe_diag/progress_line.hpp"
#include "core/api/output_file.hpp"
#include "core/run/run.hpp"

namespace moe_diag {
namespace {

struct DigestArguments {
  ContractArguments contract;
  std::string out;
  std::vector<std::string> lanes;
  bool overwrite = false;
};

void check_lanes(const Contract& contract, const std::vector<std::string>& lanes) {
  for (const std::string& name : lanes)
    if (std::none_of(contract.lanes.begin(), contract.lanes.end(), [&](const LaneSpec& l) { return l.name == name; }))
      throw Error(ErrorKind::usage, fmt::format("--lane {}: the contract has no such lane", name));
}

// Before anything is computed. The digests that the contract names are not read: they may be those that are written.
void check_out(const DigestArguments& arguments, Contract contract) {
  contract.falsifiers.clear();
  CallFiles files;
  files.read(contract);
  files.write("--out", arguments.out);
  check_output(arguments.out, arguments.overwrite, "--out");
}

ExitCode digest(const DigestArguments& arguments, const Context& context) {
  PluginHost host(context.plugin_dirs);
  const Contract contract = read(arguments.contract, host).front();
  check_lanes(contract, arguments.lanes);
  check_out(arguments, contract);
  RunOptions options;
  options.tool_version = MOE_DIAG_VERSION;
  ProgressLine line;
  if (line.is_visible()) options.progress = [&](const Progress& p) { line.show(p); };
  try {
    const Digests digests = digest_contract(contract, arguments.lanes, host, options);
    line.clear();
    write_whole_file(arguments.out, digests_json(digests));
    const bool is_stream = find_output(arguments.out).kind == OutputPlace::Kind::stream;  // standard output, perhaps
    fmt::print(is_stream ? stderr : stdout, "{}: digests of {} rows of {} lane{}\n", arguments.out, digests.rows.size(),
               digests.lanes.size(), digests.lanes.size() == 1 ? "" : "s");
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::absent) throw;
    line.clear();
    fmt::print(stderr, "moe-diag: nothing was digested: {}\n", e.what());
    return exit_untested;
  }
  return exit_held;
}

}  // namespace

void add_digest(CLI::App& app, Context& context) {
  CLI::App* command =
      app.add_subcommand("digest", "Write digests of what lanes compute, for later runs to compare with");
  auto arguments = std::make_shared<DigestArguments>();
  add_contract_options(*command, arguments->contract);
  command->add_option("--out", arguments->out, "The file of digests, JSON")->required()->type_name("FILE");
  command->add_option("--lane", arguments->lanes, "Only of this lane; may be repeated")
      ->type_name("NAME")
      ->allow_extra_args(false);
  command->add_flag("--overwrite", arguments->overwrite, "Replace the file when it is there");
  command->footer(
      "Digests are taken of the rows that falsifiers with 'metric: identical' and 'to: {digest: FILE}' look at.\n"
      "Example:\n"
      "  moe-diag digest contract.yaml --out digests.json\n");
  command->callback([arguments, &context] { context.exit_code = digest(*arguments, context); });
}

}  // namespace moe_diag
