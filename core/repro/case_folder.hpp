// SPDX-License-Identifier: MIT
#pragma once

#include <string>

#include "core/contract/contract.hpp"

namespace moe_diag {

// A folder that is filled beside the place it is for, and is gone unless it is put there.
class CaseFolder {
 public:
  // Refuses a place where something is, unless it is an empty folder or a case that may be replaced, with nothing else
  // in it. Throws Error: usage, or environment when the folder cannot be made.
  CaseFolder(const std::string& place, bool overwrite);
  CaseFolder(const CaseFolder&) = delete;
  CaseFolder& operator=(const CaseFolder&) = delete;
  ~CaseFolder();

  const std::string& path() const { return path_; }
  std::string operator/(std::string_view name) const { return path_ + '/' + std::string(name); }
  // Removes what is in it.
  void empty() const;
  // As an .npy file, whose folder is made.
  void write(const std::string& name, const GivenValues& values) const;
  void write(const std::string& name, std::string_view text) const;
  std::uint64_t bytes() const;

  void put_in_place();

 private:
  void refuse_to_replace(bool overwrite);
  void fill();

  const std::string place_;  // as it was named
  std::string target_;       // at the end of symbolic links
  std::string path_;
  bool replaces_ = false, fills_ = false;
};

}  // namespace moe_diag
