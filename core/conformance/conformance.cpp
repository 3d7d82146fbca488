// SPDX-License-Identifier: MIT
#include "core/conformance/conformance.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "core/conformance/backend_checks.hpp"
#include "core/conformance/sink_checks.hpp"
#include "core/plugin/manifest.hpp"
#include "core/text/nearest.hpp"

namespace moe_diag {
namespace {

namespace fs = std::filesystem;

// Examples of the required keys, and what is given.
PluginOptions tried_options(const std::vector<OptionInfo>& listed, const PluginOptions& given) {
  PluginOptions tried;
  std::vector<std::string> names;
  for (const OptionInfo& option : listed) {
    names.emplace_back(option.name);
    const auto same = [&](const auto& o) { return o.first == option.name; };
    const auto found = std::find_if(given.begin(), given.end(), same);
    if (found != given.end() && !accepts(option, found->second))
      throw Error(ErrorKind::usage,
                  fmt::format("--option {}={}: expected {}", found->first, found->second, accepted_by(option)));
    if (found == given.end() && option.absent == OptionAbsent::required) tried.emplace_back(option.name, option.value);
  }
  for (const auto& [key, value] : given) {
    if (std::find(names.begin(), names.end(), key) == names.end())
      throw Error(ErrorKind::usage, fmt::format("--option {}={}: {}", key, value, unknown("key", key, names)));
    tried.emplace_back(key, value);
  }
  return tried;
}

}  // namespace

void check_conformance(const std::string& path, const ConformanceOptions& options,
                       const std::function<void(const ConformanceCheck&)>& report) {
  const auto name = announced(fs::path(path).filename().string(), ".so");
  if (!name)
    throw Error(ErrorKind::usage, fmt::format("'{}': wanted a plugin, a file called moe_diag_sink_<name>.so or "
                                              "moe_diag_backend_<name>.so",
                                              path));
  std::error_code error;
  const fs::path file = fs::absolute(path, error).lexically_normal();
  if (error || !fs::exists(file, error)) throw Error(ErrorKind::usage, fmt::format("{}: no such file", path));
  TriedPlugin plugin(file);
  plugin.record = plugin.host.find(name->kind, name->name);
  if (!plugin.record.refusal.empty()) throw Error(ErrorKind::environment, plugin.record.refusal);
  plugin.call_limit = options.call_limit;
  plugin.options = tried_options(plugin.record.options, options.plugin);
  name->kind == PluginKind::sink ? check_sink(plugin, report) : check_backend(plugin, options, report);
}

}  // namespace moe_diag
