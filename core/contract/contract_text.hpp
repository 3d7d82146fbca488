// SPDX-License-Identifier: MIT
#pragma once

#include <string>

namespace moe_diag {

struct ContractText {
  std::string text;
  std::string folder;  // of the file, which relative inputs start from; empty: the working directory
};

// The text of a contract: a file, a pipe or, for "-", standard input. Throws Error(usage) when it cannot be read.
// A pipe's writer has ten seconds for each piece, so nothing waits for ever.
ContractText read_contract_text(const std::string& path);

}  // namespace moe_diag
