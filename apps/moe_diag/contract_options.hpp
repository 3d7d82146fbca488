// SPDX-License-Identifier: MIT
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "core/contract/contract.hpp"
#include "core/plugin/host.hpp"

namespace moe_diag {

// The arguments of every subcommand that reads contracts.
struct ContractArguments {
  std::vector<std::string> paths;
  std::vector<std::string> set;  // "key.path=value", for each of the contracts
};

enum class Contracts { one, several };
void add_contract_options(CLI::App& command, ContractArguments& arguments, Contracts how_many = Contracts::one);

// Where the contracts that come with moe-diag are: "contracts", or, where there is no such folder, the installed one.
std::string contracts_folder();

// A message about one of several contracts, which is named where the message does not.
std::string told_of(const std::string& path, const std::string& message);

// All contracts, in the order they were named. Throws Error(usage) with the mistakes of all of them; what their plugins
// do not know is one.
std::vector<Contract> read(const ContractArguments& arguments, PluginHost& host);

}  // namespace moe_diag
