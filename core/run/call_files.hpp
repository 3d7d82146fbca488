// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <vector>

#include "core/contract/contract.hpp"

namespace moe_diag {

// A file or folder of one call, and who names it: "--json", "the contract", "sink 'dump'".
struct CallFile {
  std::string who, path;
};

// What one call reads and writes. Files are told apart by their inodes, whatever they are called.
class CallFiles {
 public:
  void read(std::string who, const std::string& path);
  void read(const Contract& contract);  // itself, its model, and what else it names

  // Throws Error(usage), naming both, when it is read by this call, is another output of it, or is the file that
  // standard output goes to. A device takes as many as like.
  void write(std::string who, const std::string& path);
  // The same of a folder that may be replaced as a whole: nothing in it may be read.
  void write_folder(const std::string& who, const std::string& path) const;

 private:
  std::vector<CallFile> inputs_, outputs_;
};

}  // namespace moe_diag
