// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <string_view>

#include "core/api/stage.hpp"

namespace moe_diag {

// The folder of one capture. A file `incomplete` says that it is being written or was abandoned; it goes when
// manifest.json is there. So manifest.json means complete, at every moment, whatever kills the process.
class CaptureFolder {
 public:
  explicit CaptureFolder(std::string path) : path_(std::move(path)) {}

  const std::string& path() const { return path_; }

  // Makes the folder and marks it incomplete. What an earlier run left is refused, or with `overwrite` removed; a file
  // that no capture of these stages has is never touched but refused by name.
  void claim(bool overwrite, Stages stages) const;

  // Writes manifest.json and removes the mark.
  void complete(std::string_view manifest) const;

 private:
  std::string path_;
};

}  // namespace moe_diag
