// SPDX-License-Identifier: MIT
#pragma once

#include <string>

namespace moe_diag {

// The machine a verdict comes from.
struct HostInfo {
  std::string name;    // of the machine in its network
  std::string system;  // "Linux 6.1.0 x86_64"
  std::string cpu;     // "AMD EPYC 9R14"; what the system calls it
  int cores = 0;       // that this process may use
};

HostInfo host_info();

}  // namespace moe_diag
