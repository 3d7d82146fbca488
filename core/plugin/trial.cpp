// SPDX-License-Identifier: MIT
#include "core/plugin/trial.hpp"

#include <fmt/format.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace moe_diag {

namespace fs = std::filesystem;

Subject::Subject(const fs::path& file) : host({file.parent_path().string()}) {}

bool Subject::writes() const {
  return std::any_of(record.options.begin(), record.options.end(),
                     [](const OptionInfo& o) { return o.type == OptionType::path; });
}

fs::path Trial::out(const std::string& name) const {
  fs::create_directories(folder_ / name);
  return folder_ / name;
}

std::vector<MadeEvent> Trial::events() const {
  std::vector<MadeEvent> events = made_events();
  events.erase(std::remove_if(events.begin(), events.end(),
                              [&](const MadeEvent& e) { return subject_.refused.count(e.site.stage) > 0; }),
               events.end());
  return events;
}

Options Trial::options(const OptionList& changed) const {
  OptionList list = subject_.options;
  for (const auto& [key, value] : changed) {
    const auto same = [&, &name = key](const auto& option) { return option.first == name; };
    list.erase(std::remove_if(list.begin(), list.end(), same), list.end());
    list.emplace_back(key, value);
  }
  return made_options("sink 'it'", list);
}

std::unique_ptr<Sink> Trial::make(const Options& options) {
  at('b');
  return subject_.host.make_sink(subject_.record.name, options);
}

SinkOutput Trial::output(const Sink& sink, const Load& load) {
  at('w');
  return sink.output(load);
}

void Trial::open(Sink& sink, const RunInfo& run) {
  at('o');
  sink.open(run);
}

void Trial::consume(Sink& sink, const Event& event) {
  at('c');
  sink.consume(event);
}

void Trial::close(Sink& sink) {
  at('x');
  sink.close();
}

void Trial::deliver(const RunInfo& run, const std::vector<MadeEvent>& events) {
  const auto sink = make();
  open(*sink, run);
  for (const MadeEvent& event : events) consume(*sink, event.view());
  close(*sink);
}

void Trial::deliver(const fs::path& out) {
  const MadeRun run(out.string());
  deliver(run.info, events());
}

// Tells the other process which call comes now: one that ends here cannot say it afterwards.
void Trial::at(char call) {
  last_call_ = call;
  [[maybe_unused]] const ssize_t written = ::write(trail_, &call, 1);
}

namespace {

constexpr unsigned seconds_a_check = 60;

class Folder {
 public:
  Folder() {
    std::string pattern = (fs::absolute(fs::temp_directory_path()) / "moe_diag_conformance_XXXXXX").string();
    if (!::mkdtemp(pattern.data()))
      throw Error(ErrorKind::environment, fmt::format("cannot make {}: {}; set TMPDIR to a folder that can be written",
                                                      pattern, std::strerror(errno)));
    path_ = pattern;
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

std::string_view call_of(char letter) {
  switch (letter) {
    case 'b': return "create";
    case 'w': return "output";
    case 'o': return "open";
    case 'c': return "consume";
    case 'x': return "close";
  }
  return "before its first call";
}

using Look = Seen (*)(Trial&);

// What the check says, or what it ended with.
Seen result_of(Look look, Trial& trial) {
  try {
    return look(trial);
  } catch (const std::exception& e) {
    return {fmt::format("{}: {}", call_of(trial.last_call()), e.what()), ""};
  } catch (...) {
    return {fmt::format("{}: threw something that is not an exception", call_of(trial.last_call())), ""};
  }
}

// In the child: letters for calls, then a line break and the result.
[[noreturn]] void run_child(Subject& subject, const fs::path& folder, int trail, Look look) {
  ::alarm(seconds_a_check);
  // Whoever started this process may have handlers that speak in its name.
  for (const int signal : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTERM, SIGINT, SIGALRM})
    ::signal(signal, SIG_DFL);
  std::string text = "\nFcannot enter " + folder.string();
  Trial trial(subject, folder, trail);
  if (::chdir(folder.c_str()) == 0) {
    const Seen result = result_of(look, trial);
    text = result.failure.empty() ? "\nN" + result.note : "\nF" + result.failure;
  }
  std::fflush(stdout);
  for (std::size_t done = 0; done < text.size();) {
    const ssize_t n = ::write(trail, text.data() + done, text.size() - done);
    if (n <= 0) break;
    done += static_cast<std::size_t>(n);
  }
  ::_exit(0);
}

std::string read_all(int fd) {
  std::string text;
  char buffer[4096];
  for (ssize_t n = 0; (n = ::read(fd, buffer, sizeof buffer)) != 0;) {
    if (n < 0 && errno != EINTR) break;
    if (n > 0) text.append(buffer, static_cast<std::size_t>(n));
  }
  return text;
}

// Where a process that gave no result came to its end.
std::string end_of(int status, std::string_view calls) {
  const std::string_view call = call_of(calls.empty() ? ' ' : calls.back());
  if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM)
    return fmt::format("{}: not done after {} s", call, seconds_a_check);
  if (WIFSIGNALED(status)) return fmt::format("{}: the process died: {}", call, ::strsignal(WTERMSIG(status)));
  return fmt::format("{}: the process ended there, with exit code {}", call, WEXITSTATUS(status));
}

}  // namespace

Seen in_own_process(Subject& subject, Look look) {
  const Folder folder;
  int pipe[2];
  std::fflush(stdout);
  std::fflush(stderr);
  if (::pipe(pipe) != 0) throw Error(ErrorKind::environment, fmt::format("pipe: {}", std::strerror(errno)));
  const pid_t child = ::fork();
  if (child < 0) throw Error(ErrorKind::environment, fmt::format("fork: {}", std::strerror(errno)));
  if (child == 0) {
    ::close(pipe[0]);
    run_child(subject, folder.path(), pipe[1], look);
  }
  ::close(pipe[1]);
  const std::string text = read_all(pipe[0]);
  ::close(pipe[0]);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  const std::size_t end = text.find('\n');
  if (end == std::string::npos || end + 1 >= text.size()) return {end_of(status, text), ""};
  if (text[end + 1] == 'N') return {"", text.substr(end + 2)};
  return {text.substr(end + 2), ""};
}

}  // namespace moe_diag
