// SPDX-License-Identifier: MIT
#pragma once

#include <filesystem>
#include <string>

namespace moe_diag {

// From now on the calling thread, and the threads and processes that it starts, can make, write, rename, link and
// remove files in the folder `allowed` only: elsewhere such a call fails with EACCES and is noted. For the rest of the
// process: it cannot be undone. Devices and /proc are left alone. Needs Linux 5.5 and no privilege.
class WriteWatch {
 public:
  explicit WriteWatch(const std::filesystem::path& allowed);

  // Why calls cannot be watched here; empty: they are.
  const std::string& unavailable() const { return unavailable_; }
  // The first call that was refused: "wrote /etc/x"; empty: there was none.
  static std::string refused();

 private:
  std::string unavailable_;
};

}  // namespace moe_diag
