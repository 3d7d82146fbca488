// SPDX-License-Identifier: MIT
#include "apps/moe_diag/contract_options.hpp"

#include <fmt/format.h>

#include <filesystem>
#include <sstream>

#include "core/plugin/contract_plugins.hpp"
#include "core/run/open_model.hpp"

namespace moe_diag {
namespace {

std::vector<Override> overrides_of(const std::vector<std::string>& set) {
  std::vector<Override> overrides;
  for (const std::string& text : set) {
    const std::size_t at = text.find('=');
    if (at == std::string::npos || at == 0)
      throw Error(ErrorKind::usage, "--set '" + text + "': expected KEY=VALUE, as in lanes.cpu.threads=2");
    overrides.emplace_back(text.substr(0, at), text.substr(at + 1));
  }
  return overrides;
}

namespace fs = std::filesystem;

// Beside the program, where `cmake --install` puts them; empty when there are none.
fs::path installed_contracts() {
  std::error_code error;
  const fs::path folder =
      fs::read_symlink("/proc/self/exe", error).parent_path().parent_path() / "share/moe-diag/contracts";
  return !error && fs::is_directory(folder, error) ? folder : fs::path();
}

// For a contract that is not where it was named: the one of that name that is installed.
std::string installed_hint(const std::string& path) {
  std::error_code error;
  const fs::path folder = installed_contracts();
  if (folder.empty() || fs::exists(path, error)) return "";
  fs::path name = fs::path(path).lexically_normal();
  if (*name.begin() == "contracts") name = name.lexically_relative("contracts");
  for (const fs::path& file : {name, fs::path(name.string() + ".yaml")})
    if (file.is_relative() && fs::is_regular_file(folder / file, error))
      return fmt::format("; the installed one is {}", (folder / file).string());
  return fmt::format("; the installed ones are in {}", folder.string());
}

}  // namespace

std::string contracts_folder() {
  std::error_code error;
  const fs::path installed = installed_contracts();
  return installed.empty() || fs::is_directory("contracts", error) ? "contracts" : installed.string();
}

void add_contract_options(CLI::App& command, ContractArguments& arguments, Contracts how_many) {
  CLI::Option* paths =
      command.add_option("contract", arguments.paths, "The contract, a YAML file; - reads standard input")->required();
  paths->type_name("FILE");
  if (how_many == Contracts::one) paths->expected(1);
  command
      .add_option("--set", arguments.set,
                  "Replace or add a value, in every contract: lanes.f32.threads=2; 'falsifiers+={...}' adds an item")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
}

std::string told_of(const std::string& path, const std::string& message) {
  std::string told;
  std::istringstream lines(message);
  for (std::string line; std::getline(lines, line);)
    told += (told.empty() ? "" : "\n") + (line.starts_with(path + ":") ? line : path + ": " + line);
  return told;
}

std::vector<Contract> read(const ContractArguments& arguments, PluginHost& host) {
  const std::vector<Override> overrides = overrides_of(arguments.set);
  std::vector<Contract> contracts;
  std::string mistakes;
  for (const std::string& path : arguments.paths) {
    try {
      contracts.push_back(read_contract(path, overrides, plugin_check(host)));
      resolve_recordings(contracts.back(), nullptr);
    } catch (const Error& e) {
      mistakes += mistakes.empty() ? "" : "\n";
      const std::string what = e.what() + installed_hint(path);
      mistakes += arguments.paths.size() > 1 ? told_of(path, what) : what;
    }
  }
  if (!mistakes.empty()) throw Error(ErrorKind::usage, mistakes);
  return contracts;
}

}  // namespace moe_diag
