// SPDX-License-Identifier: MIT
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <optional>
#include <string>

namespace moe_diag {

// Which file it is, and in which state: a file that was written to has another.
struct FileState {
  std::uint64_t device = 0, inode = 0, bytes = 0;
  std::int64_t modified = 0, changed = 0;  // nanoseconds since 1970: of the content, of anything

  friend bool operator==(const FileState&, const FileState&) = default;
};

inline FileState state_of(const struct stat& s) {
  const auto nanoseconds = [](const timespec& t) { return std::int64_t{t.tv_sec} * 1'000'000'000 + t.tv_nsec; };
  return {s.st_dev, s.st_ino, static_cast<std::uint64_t>(s.st_size), nanoseconds(s.st_mtim), nanoseconds(s.st_ctim)};
}

// None when there is no such file.
inline std::optional<FileState> state_of(const std::string& path) {
  struct stat s {};
  if (::stat(path.c_str(), &s) != 0) return std::nullopt;
  return state_of(s);
}

}  // namespace moe_diag
