// SPDX-License-Identifier: MIT
#pragma once

// Files that a sink writes: no byte is lost without a message that names the file, the reason and what to do. A file
// appears whole or not at all; a symbolic link is followed and stays; a FIFO or a device is written through; a file
// that is there is replaced only where the user says so.

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
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "core/api/error.hpp"
#include "core/api/event.hpp"

namespace moe_diag {

// `option` is what names another place.
inline Error output_error(const std::string& path, std::string_view what, int error_number,
                          std::string_view option = "--out") {
  std::string remedy = "write elsewhere (" + std::string(option) + ")";
  if (error_number == ENOSPC || error_number == EDQUOT) remedy = "free space, capture less, or " + remedy;
  if (error_number == EACCES || error_number == EPERM || error_number == EROFS)
    remedy = "make the folder writable or " + remedy;
  return Error(ErrorKind::environment,
               path + ": " + std::string(what) + ": " + std::strerror(error_number) + "; " + remedy);
}

// Where an output goes: the end of the symbolic links that its name leads through.
struct OutputPlace {
  enum class Kind {
    fresh,  // nothing is there
    file,   // a regular file
    folder,
    stream,  // anything else: it is written through, and never replaced
  };
  std::string path;  // as it was named
  std::string target;
  Kind kind = Kind::fresh;
  int descriptor = -1;  // of a stream that this process has open: /dev/stdout, /dev/fd/63

  std::string folder() const {  // that the target is in
    const std::string parent = std::filesystem::path(target).parent_path().string();
    return parent.empty() ? "." : parent;
  }
};

namespace output {

// N of /dev/fd/N and of all that leads there; -1 for other paths.
inline int descriptor_of(const std::filesystem::path& path) {
  std::error_code error;
  const auto folder = std::filesystem::canonical(path.has_parent_path() ? path.parent_path() : ".", error);
  const std::string name = path.filename().string();
  if (error || folder != "/proc/" + std::to_string(::getpid()) + "/fd" || name.empty() || name.size() > 9 ||
      name.find_first_not_of("0123456789") != std::string::npos)
    return -1;
  return std::stoi(name);
}

}  // namespace output

// Throws Error(environment) when it cannot be found out.
inline OutputPlace find_output(const std::string& path) {
  constexpr int most_links = 40;  // as the system follows
  OutputPlace place{path, path, OutputPlace::Kind::fresh, -1};
  for (int links = 0; links <= most_links; ++links) {
    place.descriptor = output::descriptor_of(place.target);
    if (place.descriptor >= 0) place.kind = OutputPlace::Kind::stream;
    if (place.descriptor >= 0) return place;
    struct stat status {};
    if (::lstat(place.target.c_str(), &status) != 0) {
      if (errno == ENOENT) return place;
      throw output_error(path, "cannot be written", errno);
    }
    if (!S_ISLNK(status.st_mode)) {
      place.kind = S_ISREG(status.st_mode)   ? OutputPlace::Kind::file
                   : S_ISDIR(status.st_mode) ? OutputPlace::Kind::folder
                                             : OutputPlace::Kind::stream;
      return place;
    }
    std::error_code error;
    const std::filesystem::path link(place.target);
    place.target = (link.parent_path() / std::filesystem::read_symlink(link, error)).string();
    if (error) throw output_error(path, "cannot be followed", error.value());
  }
  throw output_error(path, "cannot be followed", ELOOP);
}

// Whether a file may be put there, before it is: refused are a folder, a file that is there already unless it may be
// overwritten, and a place that cannot be written. `option` is what names another place.
inline OutputPlace check_output(const std::string& path, bool overwrite, std::string_view option) {
  const OutputPlace place = find_output(path);
  const auto refuse = [&](const std::string& why) { throw Error(ErrorKind::usage, path + ": " + why); };
  if (place.kind == OutputPlace::Kind::folder || !std::filesystem::path(path).has_filename())
    refuse("is a folder, wanted a file; choose another name");
  if (place.kind == OutputPlace::Kind::file && !overwrite)
    refuse("is there already; replace it with --overwrite or choose another place (" + std::string(option) + ")");
  const bool is_stream = place.kind == OutputPlace::Kind::stream;
  std::error_code error;
  if (!is_stream && !std::filesystem::exists(place.folder(), error) && !error)
    refuse("there is no folder " + place.folder() + "; make it or choose another place (" + std::string(option) + ")");
  if (::access(is_stream ? path.c_str() : place.folder().c_str(), W_OK) != 0)
    throw output_error(path, "cannot write", errno, option);
  return place;
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
    fd_ = ::open(path_.c_str(), O_WRONLY | O_CLOEXEC | O_NOCTTY | flags, 0666);
    if (fd_ < 0) throw output_error(path_, "cannot open for writing", errno);
    struct stat status {};
    is_stream_ = ::fstat(fd_, &status) == 0 && !S_ISREG(status.st_mode);
    if (mode != Mode::modify || is_stream_) return;
    const off_t end = ::lseek(fd_, 0, SEEK_END);
    if (end < 0) {
      const int error_number = errno;
      ::close(fd_);
      throw output_error(path_, "cannot find its end", error_number);
    }
    end_ = static_cast<std::uint64_t>(end);
  }
  // Writes through a stream. Waits until somebody reads a FIFO.
  explicit OutputFile(const OutputPlace& stream) : path_(stream.path), is_stream_(true) {
    if (stream.descriptor == STDOUT_FILENO) std::fflush(stdout);  // it comes before
    fd_ = stream.descriptor >= 0 ? ::fcntl(stream.descriptor, F_DUPFD_CLOEXEC, 0)
                                 : ::open(stream.target.c_str(), O_WRONLY | O_CLOEXEC | O_NOCTTY);
    if (fd_ < 0) throw output_error(path_, "cannot open for writing", errno);
  }
  // A regular file that was opened for writing, and is empty.
  OutputFile(std::string path, int descriptor) : path_(std::move(path)), fd_(descriptor) {}
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  ~OutputFile() {
    if (fd_ >= 0) ::close(fd_);
  }

  // Sets room aside for a file of so many bytes, where the file system can: it is written faster than page by page. The
  // file's size stays, and a failure is ignored.
  void expect(std::uint64_t bytes) { ::fallocate(fd_, FALLOC_FL_KEEP_SIZE, 0, static_cast<off_t>(bytes)); }

  // At the end. Of a stream nothing else is written.
  void write(const void* data, std::size_t bytes) {
    write_at(end_, data, bytes);
    end_ += bytes;
  }

  void write_at(std::uint64_t offset, const void* data, std::size_t bytes) {
    const char* from = static_cast<const char*>(data);
    while (bytes > 0) {
      const ssize_t n = is_stream_ ? ::write(fd_, from, bytes) : ::pwrite(fd_, from, bytes, static_cast<off_t>(offset));
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) throw output_error(path_, "cannot write", n < 0 ? errno : ENOSPC);
      from += n;
      offset += static_cast<std::uint64_t>(n);
      bytes -= static_cast<std::size_t>(n);
    }
  }

  // Returns when the bytes are on the device.
  void sync() {
    if (!is_stream_ && ::fsync(fd_) != 0) throw output_error(path_, "cannot write to the device", errno);
  }

  // Some file systems report a full disk only here.
  void close() {
    if (::close(std::exchange(fd_, -1)) != 0) throw output_error(path_, "cannot close", errno);
  }

 private:
  std::string path_;
  int fd_ = -1;
  bool is_stream_ = false;
  std::uint64_t end_ = 0;
};

// A file under a name of its own beside the target, which it replaces when it is complete; else it disappears.
class PartialFile {
 public:
  explicit PartialFile(std::string target) : target_(std::move(target)) {
    int descriptor = -1;
    for (int n = 0; descriptor < 0; ++n) {
      path_ = target_ + ".partial-" + std::to_string(::getpid()) + "-" + std::to_string(n);
      descriptor = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
      if (descriptor < 0 && errno != EEXIST) throw output_error(target_, "cannot write", errno);
    }
    file_.emplace(path_, descriptor);
  }
  PartialFile(const PartialFile&) = delete;
  PartialFile& operator=(const PartialFile&) = delete;
  ~PartialFile() {
    if (file_) ::unlink(path_.c_str());
  }

  void write(const void* data, std::size_t bytes) { file_->write(data, bytes); }

  void put_in_place() {
    file_->sync();
    file_->close();
    if (std::rename(path_.c_str(), target_.c_str()) != 0) throw output_error(target_, "cannot put in place", errno);
    file_.reset();
  }

 private:
  std::string target_, path_;
  std::optional<OutputFile> file_;  // none once it is in place
};

// Puts the parts, one after the other, at `path`: whole or not at all, or through a FIFO or a device.
inline void write_whole_file(const std::string& path, std::initializer_list<std::string_view> parts) {
  const OutputPlace place = find_output(path);
  if (place.kind == OutputPlace::Kind::stream) {
    OutputFile stream(place);
    for (const std::string_view part : parts) stream.write(part.data(), part.size());
    stream.close();
    return;
  }
  PartialFile file(place.target);
  for (const std::string_view part : parts) file.write(part.data(), part.size());
  file.put_in_place();
}
inline void write_whole_file(const std::string& path, std::string_view text) { write_whole_file(path, {text}); }

// Refuses, as a usage error, what is there and is no folder.
inline OutputPlace check_folder(const std::string& path, std::string_view option) {
  OutputPlace place = find_output(path);
  if (place.kind == OutputPlace::Kind::file || place.kind == OutputPlace::Kind::stream)
    throw Error(ErrorKind::usage, path + ": is no folder; choose another place (" + std::string(option) + ")");
  return place;
}

// Makes a folder where there is none, at the end of the links that lead there. Throws Error: usage when something else
// is there, environment when it cannot be made or written.
inline void claim_folder(const std::string& path, std::string_view option) {
  const OutputPlace place = check_folder(path, option);
  std::error_code error;
  std::filesystem::create_directories(place.target, error);
  if (error && !std::filesystem::is_directory(place.target))
    throw output_error(path, "cannot make the folder", error.value());
  if (::access(place.target.c_str(), W_OK) != 0) throw output_error(path, "the folder cannot be written", errno);
}

// The path of a sink's one output file, for open(): its folder is made, and it is checked as above.
inline std::string claim_file(const RunInfo& run, std::string_view file) {
  const std::filesystem::path path = (std::filesystem::path(run.out) / file).lexically_normal();
  const OutputPlace place = find_output(path.string());
  if (place.kind == OutputPlace::Kind::fresh && path.has_filename()) {
    std::error_code error;
    std::filesystem::create_directories(place.folder(), error);
    if (error) throw output_error(place.folder(), "cannot make the folder", error.value());
  }
  check_output(path.string(), run.overwrite, "--out");
  return path.string();
}

}  // namespace moe_diag
