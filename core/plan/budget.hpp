// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/contract/contract.hpp"

namespace moe_diag {

// What one sink is going to write.
struct PlannedOutput {
  std::string sink;  // its name in the contract
  std::string path;  // of the file or folder
  std::uint64_t bytes = 0;
  bool known = false;  // false: the sink does not say
};

// Of those that are known.
std::uint64_t planned_bytes(const std::vector<PlannedOutput>& outputs);

// Why they may not be written; empty: they may.
std::string over_max_bytes(const Contract& contract, const std::vector<PlannedOutput>& outputs);
// Why they cannot be written: a file system that has less free space than is to be written to it. With `overwrite`,
// what is there already counts as free.
std::string over_free_space(const std::vector<PlannedOutput>& outputs, bool overwrite);

// "3.20 GiB"
std::string bytes_text(std::uint64_t bytes);

}  // namespace moe_diag
