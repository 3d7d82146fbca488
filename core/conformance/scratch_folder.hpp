// SPDX-License-Identifier: MIT
#pragma once

#include <fmt/format.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <system_error>

#include "core/api/error.hpp"

namespace moe_diag {

// An empty folder that goes with everything in it.
class ScratchFolder {
 public:
  ScratchFolder() {
    namespace fs = std::filesystem;
    std::string pattern = (fs::absolute(fs::temp_directory_path()) / "moe_diag_conformance_XXXXXX").string();
    if (!::mkdtemp(pattern.data()))
      throw Error(ErrorKind::environment, fmt::format("cannot make {}: {}; set TMPDIR to a folder that can be written",
                                                      pattern, std::strerror(errno)));
    path_ = pattern;
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  ~ScratchFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace moe_diag
