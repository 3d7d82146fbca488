// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "apps/moe_diag/commands.hpp"
#include "apps/moe_diag/exit_code.hpp"
#include "core/plugin/host.hpp"
#include "core/plugin/manifest.hpp"

namespace moe_diag {

namespace {

std::string state_of(const PluginRecord& record) {
  if (!record.refusal.empty()) return "refused";
  if (!record.absent.empty()) return "absent";
  return record.shadowed_by.empty() ? "ok" : "shadowed";
}

std::string table_of(const std::vector<PluginRecord>& records, bool paths) {
  std::size_t name_width = 4;
  for (const PluginRecord& r : records) name_width = std::max(name_width, r.name.size());
  std::string text = fmt::format("{:<8} {:<{}} {:<8} {}\n", "KIND", "NAME", name_width, "STATE", "SUMMARY");
  for (const PluginRecord& r : records) {
    const std::string state = state_of(r);
    text += fmt::format("{:<8} {:<{}} {}\n", name_of(r.kind), r.name, name_width,
                        r.summary.empty() ? state : fmt::format("{:<8} {}", state, r.summary));
    if (!r.refusal.empty()) text += fmt::format("  {}\n", r.refusal);
    if (!r.absent.empty()) text += fmt::format("  not built: {}\n", r.absent);
    if (!r.shadowed_by.empty()) text += fmt::format("  {}: not used, {} comes first\n", r.path, r.shadowed_by);
    if (paths && r.refusal.empty() && r.absent.empty() && r.shadowed_by.empty()) text += fmt::format("  {}\n", r.path);
  }
  return text;
}

std::string json_of(const std::vector<PluginRecord>& records) {
  auto list = nlohmann::ordered_json::array();
  for (const PluginRecord& r : records)
    list.push_back({{"kind", name_of(r.kind)},
                    {"name", r.name},
                    {"state", state_of(r)},
                    {"summary", r.summary},
                    {"path", r.path},
                    {"refusal", r.refusal},
                    {"shadowed_by", r.shadowed_by},
                    {"absent", r.absent}});
  const nlohmann::ordered_json document{{"schema", 1}, {"plugins", list}};
  return document.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace

void add_plugins(CLI::App& app, Context& context) {
  CLI::App* command =
      app.add_subcommand("plugins", "List the backends and sinks that are found, and why one is refused");
  auto json = std::make_shared<bool>(false);
  command->add_flag("--json", *json, "Print JSON instead of a table");
  command->footer(
      "Searched: each --plugin-dir, else the folders of MOE_DIAG_PLUGIN_PATH (separated by colons), else\n"
      "lib/moe-diag/plugins beside the program's folder, else where it was installed.\n"
      "Files are called moe_diag_<kind>_<name>.so. -v shows every path. Exit 4 when one is refused.");
  command->callback([&context, json] {
    PluginHost host(context.plugin_dirs);
    const std::vector<PluginRecord> records = host.list();
    if (*json)
      fmt::print("{}", json_of(records));
    else if (records.empty())
      fmt::print("no plugins found; build them, or name their folder with --plugin-dir\n");
    else
      fmt::print("{}", table_of(records, context.verbosity > 0));
    const bool refused = std::any_of(records.begin(), records.end(), [](const auto& r) { return !r.refusal.empty(); });
    context.exit_code = refused ? exit_environment : exit_held;
  });
}

}  // namespace moe_diag
