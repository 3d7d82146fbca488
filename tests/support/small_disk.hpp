// SPDX-License-Identifier: MIT
#pragma once

#include <sys/mount.h>
#include <sys/resource.h>

#include <csignal>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>

#include "tests/support/temporary_folder.hpp"

namespace moe_diag {

// A file system of its own that holds little; only root can have one.
class SmallDisk {
 public:
  explicit SmallDisk(const std::string& size)
      : mounted_(::mount("tmpfs", folder_.str().c_str(), "tmpfs", 0, ("size=" + size).c_str()) == 0) {}
  SmallDisk(const SmallDisk&) = delete;
  SmallDisk& operator=(const SmallDisk&) = delete;
  ~SmallDisk() {
    if (mounted_) ::umount2(folder_.str().c_str(), MNT_DETACH);
  }

  bool mounted() const { return mounted_; }
  std::string operator/(std::string_view name) const { return folder_ / name; }
  std::string str() const { return folder_.str(); }

  // Until only so many bytes more fit.
  void fill(std::uintmax_t left) const {
    const std::string filler = folder_ / "filler";
    std::ofstream file(filler, std::ios::binary);
    const std::string block(4096, 'x');
    while (file.write(block.data(), static_cast<std::streamsize>(block.size())).flush()) {
    }
    file.close();
    std::filesystem::resize_file(filler, std::filesystem::file_size(filler) - left);
  }

 private:
  TemporaryFolder folder_;
  bool mounted_;
};

// As large as a file may get: writing beyond that fails in the middle, as on a full disk.
class LargestFile {
 public:
  explicit LargestFile(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    if (::getrlimit(RLIMIT_FSIZE, &before_) != 0) throw std::runtime_error("getrlimit");
    rlimit limited = before_;
    limited.rlim_cur = bytes;
    if (::setrlimit(RLIMIT_FSIZE, &limited) != 0) throw std::runtime_error("setrlimit");
  }
  LargestFile(const LargestFile&) = delete;
  LargestFile& operator=(const LargestFile&) = delete;
  ~LargestFile() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_{};
  void (*handler_)(int);
};

}  // namespace moe_diag
