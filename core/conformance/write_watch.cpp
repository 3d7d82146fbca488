// SPDX-License-Identifier: MIT
#include "core/conformance/write_watch.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <future>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace moe_diag {
namespace {

namespace fs = std::filesystem;

#if defined(__x86_64__)
constexpr std::uint32_t architecture = AUDIT_ARCH_X86_64;
#elif defined(__aarch64__)
constexpr std::uint32_t architecture = AUDIT_ARCH_AARCH64;
#else
constexpr std::uint32_t architecture = 0;
#endif

// A system call that changes what `path` names, the argument of that number; `folder` is the argument with the
// descriptor that the path starts from.
struct Watched {
  int number;
  const char* verb;
  int path;
  int folder = -1;          // -1: the working folder
  int flags = -1;           // -1: it always writes; else only when these flags say so
  bool by_pointer = false;  // the flags are in memory, of openat2
};

const std::vector<Watched>& watched() {
  static const std::vector<Watched> list{
#ifdef SYS_open  // the calls that newer architectures do without
      {SYS_open, "wrote", 0, -1, 1},
      {SYS_creat, "wrote", 0},
      {SYS_mkdir, "made", 0},
      {SYS_mknod, "made", 0},
      {SYS_rmdir, "removed", 0},
      {SYS_unlink, "removed", 0},
      {SYS_rename, "renamed", 0},
      {SYS_rename, "made", 1},
      {SYS_link, "made", 1},
      {SYS_symlink, "made", 1},
#endif
      {SYS_openat, "wrote", 1, 0, 2},
      {SYS_openat2, "wrote", 1, 0, 2, true},
      {SYS_mkdirat, "made", 1, 0},
      {SYS_mknodat, "made", 1, 0},
      {SYS_unlinkat, "removed", 1, 0},
#ifdef SYS_renameat
      {SYS_renameat, "renamed", 1, 0},
      {SYS_renameat, "made", 3, 2},
#endif
      {SYS_renameat2, "renamed", 1, 0},
      {SYS_renameat2, "made", 3, 2},
      {SYS_linkat, "made", 3, 2},
      {SYS_symlinkat, "made", 2, 1},
      {SYS_truncate, "cut", 0},
  };
  return list;
}

// Hands these calls to whoever listens, and lets all others pass.
std::vector<sock_filter> filter_program() {
  std::vector<int> numbers;
  for (const Watched& call : watched()) numbers.push_back(call.number);
  std::sort(numbers.begin(), numbers.end());
  numbers.erase(std::unique(numbers.begin(), numbers.end()), numbers.end());
  std::vector<sock_filter> program{BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, arch)),
                                   BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, architecture, 1, 0),
                                   BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
                                   BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr))};
  for (const int number : numbers) {
    program.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<std::uint32_t>(number), 0, 1));
    program.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF));
  }
  program.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
  return program;
}

// Memory of the caller, which may be another process. False: it could not be read.
bool read_memory(pid_t process, std::uint64_t address, void* to, std::size_t bytes) {
  iovec here{to, bytes}, there{reinterpret_cast<void*>(address), bytes};
  return ::process_vm_readv(process, &here, 1, &there, 1, 0) == static_cast<ssize_t>(bytes);
}

std::string read_text(pid_t process, std::uint64_t address) {
  std::string text;
  for (char c = 0; text.size() < PATH_MAX && read_memory(process, address + text.size(), &c, 1) && c != '\0';)
    text += c;
  return text;
}

bool writes(const Watched& call, const seccomp_notif& at) {
  if (call.flags < 0) return true;
  std::uint64_t flags = at.data.args[call.flags];
  if (call.by_pointer && !read_memory(static_cast<pid_t>(at.pid), flags, &flags, sizeof flags)) return false;
  return (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC)) != 0;
}

// Where the path leads, links followed.
fs::path path_of(const Watched& call, const seccomp_notif& at) {
  std::error_code ignored;
  const auto folder = call.folder < 0 ? AT_FDCWD : static_cast<int>(at.data.args[call.folder]);
  const std::string link =
      folder == AT_FDCWD ? fmt::format("/proc/{}/cwd", at.pid) : fmt::format("/proc/{}/fd/{}", at.pid, folder);
  const fs::path path = read_text(static_cast<pid_t>(at.pid), at.data.args[call.path]);
  const fs::path full = fs::read_symlink(link, ignored) / path;
  // The name itself is what is removed, renamed and made: only a file that is opened is behind its links.
  if (call.flags >= 0) return fs::weakly_canonical(full, ignored);
  return fs::weakly_canonical(full.parent_path(), ignored) / full.filename();
}

bool is_harmless(const fs::path& path, const fs::path& allowed) {
  const fs::path inside = path.lexically_normal().lexically_relative(allowed);
  if (!inside.empty() && *inside.begin() != "..") return true;
  std::error_code ignored;
  return path.string().starts_with("/proc/") || fs::is_character_file(path, ignored);
}

std::mutex refused_mutex;
std::string first_refused;

void answer(int listener, const seccomp_notif& at, const fs::path& allowed) {
  seccomp_notif_resp response{};
  response.id = at.id;
  response.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
  for (const Watched& call : watched()) {
    if (call.number != at.data.nr || !writes(call, at)) continue;
    const fs::path path = path_of(call, at);
    if (is_harmless(path, allowed)) continue;
    const std::lock_guard lock(refused_mutex);
    if (first_refused.empty()) first_refused = fmt::format("{} {}", call.verb, path.string());
    response.flags = 0;
    response.error = -EACCES;
  }
  ::ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &response);
}

// Until the process ends.
void listen(int listener, const fs::path& allowed) {
  while (true) {
    seccomp_notif at{};
    if (::ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &at) == 0)
      answer(listener, at, allowed);
    else if (errno != EINTR && errno != ENOENT)  // ENOENT: the caller is gone
      return;
  }
}

}  // namespace

WriteWatch::WriteWatch(const fs::path& allowed) {
  if (architecture == 0) {
    unavailable_ = "not known for this processor";
    return;
  }
  // The listener must not be watched itself, so it starts first.
  std::promise<int> ready;
  std::thread([listener = ready.get_future(), folder = fs::weakly_canonical(allowed)]() mutable {
    if (const int fd = listener.get(); fd >= 0) listen(fd, folder);
  }).detach();
  std::vector<sock_filter> program = filter_program();
  const sock_fprog whole{static_cast<unsigned short>(program.size()), program.data()};
  long fd = -1;
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0)
    fd = ::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &whole);
  if (fd < 0) unavailable_ = fmt::format("the kernel shows no system calls here: {}", std::strerror(errno));
  ready.set_value(static_cast<int>(fd));
}

std::string WriteWatch::refused() {
  const std::lock_guard lock(refused_mutex);
  return first_refused;
}

}  // namespace moe_diag
