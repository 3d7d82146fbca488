// SPDX-License-Identifier: MIT
#include "core/plan/budget.hpp"

#include <fmt/format.h>
#include <sys/stat.h>

#include <filesystem>
#include <map>
#include <system_error>

namespace moe_diag {
namespace {

namespace fs = std::filesystem;

// The folder that exists of those the path leads through.
fs::path existing(const std::string& path) {
  std::error_code error;
  fs::path at = fs::absolute(path, error);
  while (!fs::is_directory(at, error) && at.has_relative_path()) at = at.parent_path();
  return at;
}

std::uint64_t bytes_at(const std::string& path) {
  std::error_code error;
  if (fs::is_regular_file(path, error)) return fs::file_size(path, error);
  std::uint64_t bytes = 0;
  fs::recursive_directory_iterator entry(path, error), end;
  for (; !error && entry != end; entry.increment(error))
    if (std::error_code ignored; entry->is_regular_file(ignored)) bytes += entry->file_size(ignored);
  return bytes;
}

std::string listed_bytes(const std::vector<PlannedOutput>& outputs) {
  std::string list;
  for (const PlannedOutput& output : outputs)
    if (output.known) list += fmt::format("{}{} {}", list.empty() ? "" : ", ", output.sink, bytes_text(output.bytes));
  return list;
}

}  // namespace

std::string bytes_text(std::uint64_t bytes) {
  const auto b = static_cast<double>(bytes);
  if (bytes >= 1 << 30) return fmt::format("{:.2f} GiB", b / (1 << 30));
  if (bytes >= 1 << 20) return fmt::format("{:.2f} MiB", b / (1 << 20));
  return bytes >= 1 << 10 ? fmt::format("{:.1f} KiB", b / (1 << 10)) : fmt::format("{} bytes", bytes);
}

std::uint64_t planned_bytes(const std::vector<PlannedOutput>& outputs) {
  std::uint64_t bytes = 0;
  for (const PlannedOutput& output : outputs) bytes += output.known ? output.bytes : 0;
  return bytes;
}

std::string over_max_bytes(const Contract& contract, const std::vector<PlannedOutput>& outputs) {
  const std::uint64_t bytes = planned_bytes(outputs);
  if (!contract.max_bytes || bytes <= *contract.max_bytes) return "";
  return fmt::format("{}: max_bytes: the sinks would write {} ({}), {} may be written; capture less, or raise it",
                     contract.max_bytes_at, bytes_text(bytes), listed_bytes(outputs), bytes_text(*contract.max_bytes));
}

std::string over_free_space(const std::vector<PlannedOutput>& outputs, bool overwrite) {
  std::map<dev_t, std::vector<PlannedOutput>> by_device;
  for (const PlannedOutput& output : outputs)
    if (struct ::stat at{}; output.known && ::stat(existing(output.path).c_str(), &at) == 0)
      by_device[at.st_dev].push_back(output);
  for (const auto& [device, there] : by_device) {
    std::error_code error;
    std::uint64_t free = fs::space(existing(there.front().path), error).available;
    if (error) continue;
    for (const PlannedOutput& output : there) free += overwrite ? bytes_at(output.path) : 0;
    if (planned_bytes(there) > free)
      return fmt::format(
          "{}: {} would be written to its file system ({}), which has {} free; capture less, free space, "
          "or write elsewhere (--out)",
          there.front().path, bytes_text(planned_bytes(there)), listed_bytes(there), bytes_text(free));
  }
  return "";
}

}  // namespace moe_diag
