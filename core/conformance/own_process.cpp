// SPDX-License-Identifier: MIT
#include "core/conformance/own_process.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <exception>
#include <string_view>
#include <utility>

#include "core/api/error.hpp"
#include "core/conformance/scratch_folder.hpp"

namespace moe_diag {

namespace fs = std::filesystem;

void CallTrail::at(std::string call) {
  last_call_ = std::move(call);
  const std::string line = last_call_ + "\n";
  [[maybe_unused]] const ssize_t written = ::write(fd_, line.data(), line.size());
}

namespace {

bool is_result(std::string_view text) { return !text.empty() && std::string_view("FNT").find(text[0]) != text.npos; }

// The check's answer, or how it ended.
Seen result_of(const Look& look, const fs::path& folder, CallTrail& trail) {
  if (::chdir(folder.c_str()) != 0) return failed("cannot enter " + folder.string());
  try {
    return look(folder, trail);
  } catch (const std::exception& e) {
    return {fmt::format("{}: {}", trail.last_call(), e.what())};
  } catch (...) {
    return {fmt::format("{}: threw something that is not an exception", trail.last_call())};
  }
}

// After the calls, a line each, the result: a letter that no call begins with, and its text.
std::string encoded(const Seen& seen) {
  if (!seen.failure.empty()) return "F" + seen.failure;
  return seen.not_tried.empty() ? "N" + seen.note : "T" + seen.not_tried;
}

Seen decoded(std::string_view text) {
  const std::string rest(text.substr(1));
  if (text[0] == 'F') return {rest};
  return text[0] == 'T' ? Seen{"", "", rest} : Seen{"", rest};
}

[[noreturn]] void run_child(const fs::path& folder, int fd, const Look& look) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  // Handlers of the parent process may speak in its name.
  for (const int signal : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTERM, SIGINT, SIGALRM})
    ::signal(signal, SIG_DFL);
  CallTrail trail(fd);
  const std::string text = encoded(result_of(look, folder, trail));
  std::fflush(stdout);
  for (std::size_t done = 0; done < text.size();) {
    const ssize_t n = ::write(fd, text.data() + done, text.size() - done);
    if (n <= 0) break;
    done += static_cast<std::size_t>(n);
  }
  ::_exit(0);
}

// The child's output, and whether it was silent for too long before its end.
struct Trail {
  std::string last_call = "before its first call";
  std::string result;  // begun or complete
  bool is_silent = false;
};

Trail follow(int fd, std::chrono::milliseconds limit) {
  Trail trail;
  char buffer[4096];
  while (true) {
    pollfd ready{fd, POLLIN, 0};
    const int polled = ::poll(&ready, 1, static_cast<int>(limit.count()));
    if (polled < 0 && errno == EINTR) continue;
    trail.is_silent = polled == 0;
    const ssize_t n = polled > 0 ? ::read(fd, buffer, sizeof buffer) : 0;
    if (n <= 0) return trail;
    trail.result.append(buffer, static_cast<std::size_t>(n));
    for (std::size_t end; !is_result(trail.result) && (end = trail.result.find('\n')) != std::string::npos;) {
      trail.last_call = trail.result.substr(0, end);
      trail.result.erase(0, end + 1);
    }
  }
}

// Where a process that gave no result came to its end.
std::string end_of(int status, const std::string& call) {
  if (WIFSIGNALED(status)) return fmt::format("{}: the process died: {}", call, ::strsignal(WTERMSIG(status)));
  return fmt::format("{}: the process ended there, with exit code {}", call, WEXITSTATUS(status));
}

}  // namespace

Seen in_own_process(std::chrono::milliseconds call_limit, const Look& look) {
  const ScratchFolder folder;
  int pipe[2];
  std::fflush(stdout);
  std::fflush(stderr);
  if (::pipe2(pipe, O_CLOEXEC) != 0) throw Error(ErrorKind::environment, fmt::format("pipe: {}", std::strerror(errno)));
  const pid_t child = ::fork();
  if (child < 0) throw Error(ErrorKind::environment, fmt::format("fork: {}", std::strerror(errno)));
  if (child == 0) {
    ::close(pipe[0]);
    run_child(folder.path(), pipe[1], look);
  }
  ::close(pipe[1]);
  const Trail trail = follow(pipe[0], call_limit);
  ::close(pipe[0]);
  if (trail.is_silent) ::kill(child, SIGKILL);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (trail.is_silent)
    return {fmt::format("{}: had not returned after {:g} s", trail.last_call,
                        std::chrono::duration<double>(call_limit).count()),
            "", "", true};
  return is_result(trail.result) ? decoded(trail.result) : Seen{end_of(status, trail.last_call)};
}

}  // namespace moe_diag
