// SPDX-License-Identifier: MIT
#include "apps/moe_diag/run_settings.hpp"

#include "apps/moe_diag/interrupt.hpp"
#include "apps/moe_diag/progress_line.hpp"

namespace moe_diag {
namespace {
constexpr std::string_view id_mark = "{id}";
}

void add_run_settings(CLI::App& command, RunSettings& settings) {
  command
      .add_option("--out", settings.out, "Folder of all outputs; '{id}' in it is the contract's id [moe-diag-out/{id}]")
      ->type_name("DIR");
  command.add_flag(
      "--overwrite", settings.overwrite,
      "Replace files and captures that are there; not needed in the default folder for what an earlier run left");
  command
      .add_option("--inject", settings.inject,
                  "Plant a fault, in every contract: '{inject: nan, stage: moe_expert_out, layer: 6, lane: cuda}'")
      ->type_name("FAULT")
      ->allow_extra_args(false);
  command.add_option("--threads", settings.threads, "Threads of lanes that do not state theirs")
      ->check(CLI::Range(1, 256));
}

void set_default_threads(Contract& contract, int threads) {
  if (threads > 0)
    for (LaneSpec& lane : contract.lanes) lane.options.add_default("threads", std::to_string(threads));
}

RunOptions options_of(const RunSettings& settings, const Contract& contract, const std::string& out) {
  RunOptions options;
  options.out = out;
  options.overwrite = settings.overwrite;
  options.is_default_out = !settings.out;
  options.tool_version = MOE_DIAG_VERSION;
  for (const std::string& text : settings.inject) options.inject.push_back(parse_fault(text, contract));
  return options;
}

std::string folder_of(const RunSettings& settings, const Contract& contract, bool one_of_several) {
  const std::string base = settings.out.value_or("moe-diag-out");
  if (base.empty()) throw Error(ErrorKind::usage, "--out: expected the name of a folder, found nothing");
  if (const std::size_t at = base.find(id_mark); at != std::string::npos)
    return std::string(base).replace(at, id_mark.size(), contract.metadata.id);
  return settings.out && !one_of_several ? base : base + '/' + contract.metadata.id;
}

Verdict run_watched(const Contract& contract, PluginHost& host, RunOptions options) {
  ProgressLine line;
  if (line.is_visible()) options.progress = [&](const Progress& p) { line.show(p); };
  options.interrupted = is_interrupted;
  Verdict verdict = run_contract(contract, host, options);
  line.clear();
  return verdict;
}

}  // namespace moe_diag
