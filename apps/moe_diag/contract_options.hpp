// SPDX-License-Identifier: MIT
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "core/contract/contract.hpp"

namespace moe_diag {

// The arguments of every subcommand that reads a contract.
struct ContractArguments {
  std::string path;
  std::vector<std::string> set;  // "key.path=value"
};

inline void add_contract_options(CLI::App& command, ContractArguments& arguments) {
  command.add_option("contract", arguments.path, "The contract, a YAML file")->required()->type_name("FILE");
  command.add_option("--set", arguments.set, "Replace or add a value: lanes.f32.threads=2")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
}

inline Contract read(const ContractArguments& arguments) {
  std::vector<Override> overrides;
  for (const std::string& text : arguments.set) {
    const std::size_t at = text.find('=');
    if (at == std::string::npos || at == 0)
      throw Error(ErrorKind::usage, "--set '" + text + "': expected KEY=VALUE, as in lanes.cpu.threads=2");
    overrides.emplace_back(text.substr(0, at), text.substr(at + 1));
  }
  return read_contract(arguments.path, overrides);
}

}  // namespace moe_diag
