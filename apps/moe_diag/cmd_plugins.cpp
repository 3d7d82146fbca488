// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>

#include "apps/moe_diag/commands.hpp"
#include "apps/moe_diag/exit_code.hpp"
#include "core/conformance/conformance.hpp"
#include "core/plugin/host.hpp"
#include "core/plugin/manifest.hpp"

namespace moe_diag {

namespace {

std::string state_of(const PluginRecord& record) {
  if (!record.refusal.empty()) return "refused";
  if (!record.absent.empty()) return "absent";
  return record.shadowed_by.empty() ? "ok" : "shadowed";
}

// What is taken when a contract does not have the key, and whether it must.
std::string absent_text(const OptionInfo& o) {
  switch (o.absent) {
    case OptionAbsent::fallback: return fmt::format("default {}", o.value);
    case OptionAbsent::computed: return fmt::format("default: {}", o.value);
    case OptionAbsent::required: return fmt::format("required, such as {}", o.value);
  }
  return "";
}

std::string_view type_name(OptionType type) {
  switch (type) {
    case OptionType::text: return "text";
    case OptionType::path: return "path";
    case OptionType::integer: return "integer";
    case OptionType::flag: return "flag";
    case OptionType::choice: return "choice";
  }
  return "";
}

// "    threads   threads that share the work" and, below it, "a whole number from 1 to 256, in threads; default 1".
std::string options_of(const PluginRecord& record) {
  std::size_t width = 0;
  for (const OptionInfo& o : record.options) width = std::max(width, std::strlen(o.name));
  std::string text;
  for (const OptionInfo& o : record.options) {
    const std::string unit = *o.unit ? fmt::format(" ({})", o.unit) : "";
    text += fmt::format("    {:<{}}  {}\n", o.name, width, o.text);
    text += fmt::format("    {:<{}}  {}{}; {}\n", "", width, accepted_by(o), unit, absent_text(o));
  }
  return text;
}

// What a program finds an option's value under: "example" means that the key is required, "computed" that it is words.
std::string_view value_key(OptionAbsent absent) {
  switch (absent) {
    case OptionAbsent::fallback: return "default";
    case OptionAbsent::computed: return "computed";
    case OptionAbsent::required: return "example";
  }
  return "";
}

nlohmann::ordered_json options_json(const PluginRecord& record) {
  auto list = nlohmann::ordered_json::array();
  for (const OptionInfo& o : record.options) {
    nlohmann::ordered_json option{{"name", o.name},
                                  {"type", type_name(o.type)},
                                  {"unit", o.unit},
                                  {value_key(o.absent), o.value},
                                  {"text", o.text}};
    if (o.type == OptionType::integer) option.update({{"lowest", o.lowest}, {"highest", o.highest}});
    if (o.type == OptionType::choice) option["choices"] = o.choices;
    list.push_back(std::move(option));
  }
  return list;
}

std::string table_of(const std::vector<PluginRecord>& records, bool verbose) {
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
    if (verbose && state == "ok") text += fmt::format("  {}\n{}", r.path, options_of(r));
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
                    {"absent", r.absent},
                    {"options", options_json(r)}});
  const nlohmann::ordered_json document{{"schema", 1}, {"plugins", list}};
  return document.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

// A line a check; the exit code is that of a claim.
int conformance_of(const std::string& path, const std::vector<std::string>& options, int call_limit) {
  ConformanceOptions wanted;
  wanted.call_limit = std::chrono::seconds(call_limit);
  for (const std::string& option : options) {
    const std::size_t equals = option.find('=');
    if (equals == 0 || equals == std::string::npos)
      throw Error(ErrorKind::usage, fmt::format("--option '{}': wanted KEY=VALUE", option));
    wanted.plugin.emplace_back(option.substr(0, equals), option.substr(equals + 1));
  }
  int kept = 0, broken = 0, not_tried = 0;
  check_conformance(path, wanted, [&](const ConformanceCheck& check) {
    const bool ok = check.failure.empty(), tried = check.not_tried.empty();
    (!tried ? not_tried : ok ? kept : broken) += 1;
    fmt::print("{:<6}  {}{}\n",
               !tried ? "-"
               : ok   ? "ok"
                      : "BROKEN",
               check.promise, check.note.empty() ? "" : ": " + check.note);
    if (!ok) fmt::print("        {}\n", check.failure);
    if (!tried) fmt::print("        not tried: {}\n", check.not_tried);
    std::fflush(stdout);
  });
  fmt::print("{}: {} kept, {} broken{}\n", path, kept, broken,
             not_tried > 0 ? fmt::format(", {} not tried", not_tried) : "");
  return broken > 0 ? exit_falsified : exit_held;
}

}  // namespace

void add_plugins(CLI::App& app, Context& context) {
  CLI::App* command =
      app.add_subcommand("plugins", "List the backends and sinks that are found, and why one is refused");
  auto json = std::make_shared<bool>(false);
  auto conformance = std::make_shared<std::string>();
  auto options = std::make_shared<std::vector<std::string>>();
  command->add_flag("--json", *json, "Print JSON instead of a table");
  auto* path = command->add_option("--conformance", *conformance,
                                   "Try the sink or backend in this file: does it keep what it promises?");
  path->type_name("FILE");
  command
      ->add_option("--option", *options,
                   "An option of that plugin, for those that an example value will not do; numerics=NAME: only these")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false)
      ->needs(path);
  auto call_limit = std::make_shared<int>(10);
  command->add_option("--call-limit", *call_limit, "Seconds that each call of that plugin may take")
      ->type_name("SECONDS")
      ->check(CLI::Range(1, 86400))
      ->capture_default_str()
      ->needs(path);
  command->add_flag_callback("-v,--verbose", context.be_verbose(), "Say more: every path, and the options of each");
  command->footer(
      "Searched: each --plugin-dir, else the folders of MOE_DIAG_PLUGIN_PATH (separated by colons), else\n"
      "lib/moe-diag/plugins beside the program's folder, else where it was installed.\n"
      "Files are called moe_diag_<kind>_<name>.so. -v shows every path, and each option with its type, unit and\n"
      "default. Exit 4 when one is refused, 1 when --conformance finds a promise broken.");
  command->callback([&context, json, path, conformance, options, call_limit] {
    if (path->count() > 0) {
      context.exit_code = conformance_of(*conformance, *options, *call_limit);
      return;
    }
    PluginHost host(context.plugin_dirs);
    const std::vector<PluginRecord> records = host.list();
    if (*json)
      fmt::print("{}", json_of(records));
    else if (records.empty())
      fmt::print("no plugins found; build them, or name their folder with --plugin-dir\n");
    else
      fmt::print("{}", table_of(records, context.verbose));
    const bool refused = std::any_of(records.begin(), records.end(), [](const auto& r) { return !r.refusal.empty(); });
    context.exit_code = refused ? exit_environment : exit_held;
  });
}

}  // namespace moe_diag
