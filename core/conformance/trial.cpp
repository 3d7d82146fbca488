// SPDX-License-Identifier: MIT
#include "core/conformance/trial.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "core/conformance/scratch_folder.hpp"

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

std::vector<RecordedEvent> Trial::events() const {
  std::vector<RecordedEvent> events = recorded_run().events;
  events.erase(
      std::remove_if(events.begin(), events.end(),
                     [&](const RecordedEvent& e) { return subject_.refused.count(name_of(e.site.stage)) > 0; }),
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
  Options options("sink 'it'", "made.yaml:1:1");
  int line = 2;
  for (const auto& [key, value] : list) options.add(key, value, fmt::format("made.yaml:{}:3", line++));
  return options;
}

std::unique_ptr<Sink> Trial::make(const Options& options) {
  at("create");
  return subject_.host.make_sink(subject_.record.name, options);
}

SinkOutput Trial::output(const Sink& sink, const Load& load) {
  at("output");
  return sink.output(load);
}

void Trial::open(Sink& sink, const RunInfo& run) {
  at("open");
  sink.open(run);
}

void Trial::consume(Sink& sink, const Event& event) {
  const RecordedRun& run = recorded_run();
  at("consume", {run.prompts[static_cast<std::size_t>(event.prompt)].id,
                 run.lanes[static_cast<std::size_t>(event.lane)].name, event.site, event.site, event.positions});
  sink.consume(event);
}

void Trial::close(Sink& sink) {
  at("close");
  sink.close();
}

void Trial::deliver(const RunInfo& run, const std::vector<RecordedEvent>& events) {
  const auto sink = make();
  open(*sink, run);
  for (const RecordedEvent& event : events) consume(*sink, event.view());
  close(*sink);
}

void Trial::deliver(const fs::path& out) {
  const TrialRun run(out);
  deliver(run.info, events());
}

// Tells the other process which call comes now: one that ends here, or never, cannot say it afterwards.
void Trial::at(const char* call, const CallPlace& place) {
  const std::string about = text_of(place);
  last_call_ = about.empty() ? call : fmt::format("{} ({})", call, about);
  const std::string line = last_call_ + "\n";
  [[maybe_unused]] const ssize_t written = ::write(trail_, line.data(), line.size());
}

namespace {

bool is_result(std::string_view text) { return !text.empty() && std::string_view("FNT").find(text[0]) != text.npos; }

using Look = Seen (*)(Trial&);

// The check's answer, or how it ended.
Seen result_of(Look look, Trial& trial) {
  try {
    return look(trial);
  } catch (const std::exception& e) {
    return {fmt::format("{}: {}", trial.last_call(), e.what())};
  } catch (...) {
    return {fmt::format("{}: threw something that is not an exception", trial.last_call())};
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

[[noreturn]] void run_child(Subject& subject, const fs::path& folder, int trail, Look look) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  // Handlers of the parent process may speak in its name.
  for (const int signal : {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTERM, SIGINT, SIGALRM})
    ::signal(signal, SIG_DFL);
  Trial trial(subject, folder, trail);
  const Seen seen = ::chdir(folder.c_str()) == 0 ? result_of(look, trial) : Seen{"cannot enter " + folder.string()};
  const std::string text = encoded(seen);
  std::fflush(stdout);
  for (std::size_t done = 0; done < text.size();) {
    const ssize_t n = ::write(trail, text.data() + done, text.size() - done);
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

Seen in_own_process(Subject& subject, Look look) {
  const ScratchFolder folder;
  int pipe[2];
  std::fflush(stdout);
  std::fflush(stderr);
  if (::pipe2(pipe, O_CLOEXEC) != 0) throw Error(ErrorKind::environment, fmt::format("pipe: {}", std::strerror(errno)));
  const pid_t child = ::fork();
  if (child < 0) throw Error(ErrorKind::environment, fmt::format("fork: {}", std::strerror(errno)));
  if (child == 0) {
    ::close(pipe[0]);
    run_child(subject, folder.path(), pipe[1], look);
  }
  ::close(pipe[1]);
  const Trail trail = follow(pipe[0], subject.call_limit);
  ::close(pipe[0]);
  if (trail.is_silent) ::kill(child, SIGKILL);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (trail.is_silent)
    return {fmt::format("{}: had not returned after {:g} s", trail.last_call,
                        std::chrono::duration<double>(subject.call_limit).count()),
            "", "", true};
  return is_result(trail.result) ? decoded(trail.result) : Seen{end_of(status, trail.last_call)};
}

}  // namespace moe_diag
