// SPDX-License-Identifier: MIT
#include "core/report/host.hpp"

#include <sys/utsname.h>

#include <fstream>
#include <thread>

namespace moe_diag {
namespace {

// The first "model name : ..." of /proc/cpuinfo; empty on processors that have none there.
std::string model_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const std::size_t colon = line.find(": ");
    if (line.starts_with("model name") && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "";
}

}  // namespace

HostInfo host_info() {
  HostInfo host;
  struct utsname names = {};
  if (::uname(&names) == 0) {
    host.name = names.nodename;
    host.system = std::string(names.sysname) + ' ' + names.release + ' ' + names.machine;
  }
  host.cpu = model_name();
  if (host.cpu.empty()) host.cpu = names.machine;
  host.cores = static_cast<int>(std::thread::hardware_concurrency());
  return host;
}

}  // namespace moe_diag
