// SPDX-License-Identifier: MIT
#include "core/contract/contract_text.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "core/api/error.hpp"

namespace moe_diag {
namespace {

constexpr std::size_t most_read = (1 << 20) + 1;  // a byte more than parse_document() takes
constexpr int longest_wait = 10;                  // seconds

class Source {
 public:
  explicit Source(const std::string& path) : path_(path) {
    // Without O_NONBLOCK, opening a pipe waits for somebody who writes.
    fd_ = ::open(path == "-" ? "/dev/stdin" : path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd_ >= 0) return;
    refuse(errno == ENOENT ? "there is no such file" : errno == EACCES ? "no permission" : std::strerror(errno));
  }
  Source(const Source&) = delete;
  Source& operator=(const Source&) = delete;
  ~Source() {
    if (fd_ >= 0) ::close(fd_);
  }

  // Whether it lies in a folder that relative inputs may start from.
  bool is_file() const {
    struct stat status {};
    if (::fstat(fd_, &status) != 0) refuse(std::strerror(errno));
    if (S_ISDIR(status.st_mode)) refuse("it is a folder");
    return S_ISREG(status.st_mode) && path_ != "-";
  }

  std::string all() const {
    std::string text(most_read, '\0');
    std::size_t size = 0;
    while (size < most_read) {
      const ssize_t read = ::read(fd_, text.data() + size, most_read - size);
      if (read == 0) break;
      if (read > 0) size += static_cast<std::size_t>(read);
      if (read < 0 && errno == EAGAIN)
        wait();
      else if (read < 0 && errno != EINTR)
        refuse(fmt::format("reading failed: {}", std::strerror(errno)));
    }
    text.resize(size);
    if (text.empty() && !is_file()) refuse("it is no file, and nobody writes to it");
    return text;
  }

 private:
  [[noreturn]] void refuse(const std::string& why) const {
    throw Error(ErrorKind::usage, fmt::format("{}: cannot read the contract: {}", path_, why));
  }

  void wait() const {
    struct pollfd ready {
      fd_, POLLIN, 0
    };
    const int count = ::poll(&ready, 1, longest_wait * 1000);
    if (count == 0) refuse(fmt::format("it is no file, and nothing was written to it for {} seconds", longest_wait));
    if (count < 0 && errno != EINTR) refuse(fmt::format("reading failed: {}", std::strerror(errno)));
  }

  const std::string path_;
  int fd_ = -1;
};

}  // namespace

ContractText read_contract_text(const std::string& path) {
  const Source source(path);
  const bool is_file = source.is_file();
  return {source.all(), is_file ? std::filesystem::path(path).parent_path().string() : ""};
}

}  // namespace moe_diag
