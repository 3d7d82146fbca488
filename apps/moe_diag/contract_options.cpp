// SPDX-License-Identifier: MIT
#include "apps/moe_diag/contract_options.hpp"

#include <sstream>

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

}  // namespace

void add_contract_options(CLI::App& command, ContractArguments& arguments, Contracts how_many) {
  CLI::Option* paths = command.add_option("contract", arguments.paths, "The contract, a YAML file")->required();
  paths->type_name("FILE");
  if (how_many == Contracts::one) paths->expected(1);
  command.add_option("--set", arguments.set, "Replace or add a value, in every contract: lanes.f32.threads=2")
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

std::vector<Contract> read(const ContractArguments& arguments) {
  const std::vector<Override> overrides = overrides_of(arguments.set);
  std::vector<Contract> contracts;
  std::string mistakes;
  for (const std::string& path : arguments.paths) {
    try {
      contracts.push_back(read_contract(path, overrides));
    } catch (const Error& e) {
      mistakes += mistakes.empty() ? "" : "\n";
      mistakes += arguments.paths.size() > 1 ? told_of(path, e.what()) : e.what();
    }
  }
  if (!mistakes.empty()) throw Error(ErrorKind::usage, mistakes);
  return contracts;
}

}  // namespace moe_diag
