// SPDX-License-Identifier: MIT
#pragma once

#include <string>

#include "core/contract/contract.hpp"
#include "core/file/new_folder.hpp"

namespace moe_diag {

// The folder of a case: what is there is replaced only where it is a case, with nothing else in it.
class CaseFolder : public NewFolder {
 public:
  CaseFolder(const std::string& place, bool overwrite);

  using NewFolder::write;
  // As an .npy file, whose folder is made.
  void write(const std::string& name, const GivenValues& values) const;
};

}  // namespace moe_diag
