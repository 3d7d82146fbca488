// SPDX-License-Identifier: MIT
#pragma once

// Files that a sink writes: no byte is lost without a message that names the file, the reason and what to do.

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <initializer_list>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "core/api/error.hpp"
#include "core/api/event.hpp"

namespace moe_diag {

inline Error output_error(const std::string& path, std::string_view what, int error_number) {
  std::string remedy = "write elsewhere (--out)";
  if (error_number == ENOSPC || error_number == EDQUOT) remedy = "free space, capture less, or write elsewhere (--out)";
  if (error_number == EACCES || error_number == EPERM || error_number == EROFS)
    remedy = "make the folder writable or write elsewhere (--out)";
  return Error(ErrorKind::environment,
               path + ": " + std::string(what) + ": " + std::strerror(error_number) + "; " + remedy);
}

// An open file; closed at the latest by the destructor. Every failure throws Error(environment).
class OutputFile {
 public:
  enum class Mode {
    create,   // must not be there
    replace,  // emptied when there
    modify,   // must be there; writing starts at its end
  };

  OutputFile(std::string path, Mode mode) : path_(std::move(path)) {
    const int flags = mode == Mode::create ? O_CREAT | O_EXCL : mode == Mode::replace ? O_CREAT | O_TRUNC : 0;
    fd_ = ::open(path_.c_str(), O_WRONLY | O_CLOEXEC | flags, 0666);
    if (fd_ < 0) throw output_error(path_, "cannot open for writing", errno);
    if (mode != Mode::modify) return;
    const off_t end = ::lseek(fd_, 0, SEEK_END);
    if (end < 0) {
      const int error_number = errno;
      ::close(fd_);
      throw output_error(path_, "cannot find its end", error_number);
    }
    end_ = static_cast<std::uint64_t>(end);
  }
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  ~OutputFile() {
    if (fd_ >= 0) ::close(fd_);
  }

  // Sets room aside for a file of so many bytes, where the file system can: it is written faster than page by page. The
  // file's size stays, and a failure is ignored.
  void expect(std::uint64_t bytes) { ::fallocate(fd_, FALLOC_FL_KEEP_SIZE, 0, static_cast<off_t>(bytes)); }

  // At the end.
  void write(const void* data, std::size_t bytes) {
    write_at(end_, data, bytes);
    end_ += bytes;
  }

  void write_at(std::uint64_t offset, const void* data, std::size_t bytes) {
    const char* from = static_cast<const char*>(data);
    while (bytes > 0) {
      const ssize_t n = ::pwrite(fd_, from, bytes, static_cast<off_t>(offset));
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) throw output_error(path_, "cannot write", n < 0 ? errno : ENOSPC);
      from += n;
      offset += static_cast<std::uint64_t>(n);
      bytes -= static_cast<std::size_t>(n);
    }
  }

  // Returns when the bytes are on the device.
  void sync() {
    if (::fsync(fd_) != 0) throw output_error(path_, "cannot write to the device", errno);
  }

  // Some file systems report a full disk only here.
  void close() {
    if (::close(std::exchange(fd_, -1)) != 0) throw output_error(path_, "cannot close", errno);
  }

 private:
  std::string path_;
  int fd_ = -1;
  std::uint64_t end_ = 0;
};

// Puts the parts, one after the other, at `path`, whole or not at all: a temporary file beside it is flushed, then
// renamed over it.
inline void write_whole_file(const std::string& path, std::initializer_list<std::string_view> parts) {
  const std::string partial = path + ".partial";
  try {
    OutputFile file(partial, OutputFile::Mode::replace);
    for (const std::string_view part : parts) file.write(part.data(), part.size());
    file.sync();
    file.close();
    if (std::rename(partial.c_str(), path.c_str()) != 0) throw output_error(path, "cannot put in place", errno);
  } catch (...) {
    ::unlink(partial.c_str());
    throw;
  }
}
inline void write_whole_file(const std::string& path, std::string_view text) { write_whole_file(path, {text}); }

// The path of a sink's one output file, for open(): its folder is made. Refused is a file that is there already, unless
// the run may overwrite, and a folder that cannot be written.
inline std::string claim_file(const RunInfo& run, std::string_view file) {
  const std::filesystem::path path = (std::filesystem::path(run.out) / file).lexically_normal();
  const auto refuse = [&](const char* why) { throw Error(ErrorKind::usage, path.string() + ": " + why); };
  std::error_code error;
  if (!path.has_filename() || std::filesystem::is_directory(path, error))
    refuse("is a folder, wanted a file; choose another name");
  if (std::filesystem::exists(path, error) && !run.overwrite)
    refuse("is there already; replace it with --overwrite or write elsewhere (--out)");
  const std::filesystem::path folder = path.parent_path();
  std::filesystem::create_directories(folder, error);
  if (error) throw output_error(folder.string(), "cannot make the folder", error.value());
  if (::access(folder.c_str(), W_OK) != 0) throw output_error(path.string(), "cannot write", errno);
  return path.string();
}

}  // namespace moe_diag
