// SPDX-License-Identifier: MIT
#include "core/plan/memory.hpp"

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <string>

namespace moe_diag {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t no_limit = std::numeric_limits<std::uint64_t>::max();

// None where there is no such file, or it says "max".
std::optional<std::uint64_t> number_in(const fs::path& file) {
  std::ifstream in(file);
  std::uint64_t value = 0;
  return in >> value ? std::optional(value) : std::nullopt;
}

// The number behind a word.
std::uint64_t number_behind(const std::string& word, const fs::path& file) {
  std::ifstream in(file);
  std::string at;
  while (in >> at)
    if (std::uint64_t value = 0; at == word && in >> value) return value;
  return 0;
}

// What one version of control groups calls things.
struct Names {
  const char *limit, *usage, *files_in_use, *files_not_in_use;
};

std::uint64_t available_in(const fs::path& group, const Names& names) {
  const auto limit = number_in(group / names.limit), usage = number_in(group / names.usage);
  if (!limit || !usage) return no_limit;
  const fs::path stat = group / "memory.stat";
  const std::uint64_t files = number_behind(names.files_in_use, stat) + number_behind(names.files_not_in_use, stat);
  const std::uint64_t used = *usage - std::min(*usage, files);
  return *limit - std::min(*limit, used);
}

// The least that the group and those it is in leave. In a container its path may be another than outside.
std::uint64_t available_up_from(const fs::path& group, const fs::path& mount, const Names& names) {
  std::uint64_t available = available_in(mount, names);
  for (fs::path at; const fs::path& part : group.relative_path())
    available = std::min(available, available_in(mount / (at /= part), names));
  return available;
}

}  // namespace

std::uint64_t available_in_groups(const fs::path& groups, const fs::path& mount) {
  std::uint64_t available = no_limit;
  std::ifstream in(groups);
  for (std::string line; std::getline(in, line);) {
    const std::size_t controllers = line.find(':') + 1, path = line.find(':', controllers) + 1;
    if (controllers == 0 || path == 0) continue;
    const std::string what = line.substr(controllers, path - 1 - controllers);
    if (what.empty())
      available =
          std::min(available, available_up_from(line.substr(path), mount,
                                                {"memory.max", "memory.current", "active_file", "inactive_file"}));
    if (what == "memory")
      available = std::min(available, available_up_from(line.substr(path), mount / "memory",
                                                        {"memory.limit_in_bytes", "memory.usage_in_bytes",
                                                         "total_active_file", "total_inactive_file"}));
  }
  return available;
}

std::uint64_t available_memory() {
  const std::uint64_t kibibytes = number_behind("MemAvailable:", "/proc/meminfo");
  return std::min(kibibytes > 0 ? kibibytes * 1024 : no_limit,
                  available_in_groups("/proc/self/cgroup", "/sys/fs/cgroup"));
}

}  // namespace moe_diag
