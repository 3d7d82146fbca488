// SPDX-License-Identifier: MIT
// A run that is asked to stop keeps what it has; one that is asked twice stops at once.
#include <fcntl.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <thread>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/support/gate.hpp"

namespace moe_diag {
namespace {

namespace fs = std::filesystem;
using Catch::Matchers::Contains;

// Long enough to be met in the middle: many layers, many prompts, the first claim false from the start.
std::string long_contract() {
  std::string prompts = "prompts:\n";
  for (int i = 0; i < 200; ++i) prompts += "  - {id: p" + std::to_string(i) + ", tokens: [3, 141, 59, 26, 53]}\n";
  std::string text = gate_text(
      "long",
      false_claim + held_claim + "  - {id: STEP, claim: s, lane: step, stage: all, metric: rel_l2, at_most: 1}\n",
      "capture: [{stages: lm_head, lanes: truth, to: dump}]\nsinks: {dump: {sink: npy, dir: dump}}\n",
      "{synthetic: tiny, seed: 7, layers: 48}");
  const std::size_t at = text.find("prompts:");
  return text.replace(at, text.find('\n', at) + 1 - at, prompts);
}

// The runner on the contract, in a process of its own, its output in a file.
class Child {
 public:
  explicit Child(const TemporaryFolder& folder) : out_(folder / "out"), log_(folder / "log") {
    write_text(folder / "long.yaml", long_contract());
    write_text(folder / "next.yaml", gate_text("next", held_claim));
    const std::string junit = folder / "junit.xml", contract = folder / "long.yaml", next = folder / "next.yaml";
    pid_ = fork();
    if (pid_ != 0) return;
    const int log = ::open(log_.c_str(), O_CREAT | O_WRONLY, 0600);
    ::dup2(log, STDOUT_FILENO);
    ::dup2(log, STDERR_FILENO);
    ::setenv("MOE_DIAG_PLUGIN_PATH", MOE_DIAG_PLUGINS ":" MOE_DIAG_NOTES, 1);
    ::execl(MOE_DIAG_EXE, MOE_DIAG_EXE, "run", contract.c_str(), next.c_str(), "--out", out_.c_str(), "--junit",
            junit.c_str(), nullptr);
    ::_exit(127);
  }

  // True once the first prompt's logits are written: by then all falsifiers have seen something.
  bool is_running() {
    const std::string seen = out_ + "/long/dump/p1";
    while (!fs::exists(seen))
      if (::waitpid(pid_, &status_, WNOHANG) != 0) return false;
    return true;
  }
  void send(int signal) const { ::kill(pid_, signal); }
  // The exit code, or 128 and the signal.
  int wait() {
    ::waitpid(pid_, &status_, 0);
    return WIFEXITED(status_) ? WEXITSTATUS(status_) : 128 + WTERMSIG(status_);
  }
  std::string log() const { return read_text(log_); }

 private:
  std::string out_, log_;
  pid_t pid_ = 0;
  int status_ = 0;
};

}  // namespace

TEST_CASE("an interrupted run writes what was judged, and no capture looks complete") {
  for (const int signal : {SIGINT, SIGTERM}) {
    const TemporaryFolder folder;
    Child child(folder);
    REQUIRE(child.is_running());
    child.send(signal);
    CHECK(child.wait() == 4);
    CHECK_THAT(child.log(), Contains("FAILED: long") && Contains("interrupted") &&
                                Contains("next: interrupted before") && Contains("exit code 4"));
    const auto verdict = read_json(folder / "out/long/verdict.json");
    CHECK_THAT(verdict["failure"].get<std::string>(), Contains("interrupted"));
    CHECK(verdict["falsifiers"][0]["outcome"] == "falsified");
    for (const std::size_t f : {1, 2}) {
      CHECK(verdict["falsifiers"][f]["outcome"] == "untested");
      CHECK_THAT(verdict["falsifiers"][f]["reason"].get<std::string>(), Contains("interrupted"));
      CHECK(verdict["falsifiers"][f]["samples"] > 0);
    }
    CHECK_FALSE(fs::exists(folder / "out/long/dump/manifest.json"));
    CHECK(fs::exists(folder / "out/long/dump/incomplete"));
    CHECK_THAT(read_json(folder / "out/next/verdict.json")["failure"].get<std::string>(), Contains("before it began"));
    CHECK(junit_breaches(folder / "junit.xml") == "");
    CHECK(json_breaches(folder / "out/long/verdict.json") == "");
    CHECK_THAT(read_text(folder / "junit.xml"), Contains("name=\"next\" tests=\"2\" failures=\"0\" errors=\"2\""));
  }
}

// Stopped meanwhile, so that both signals are there before it does anything about the first.
TEST_CASE("signals that arrive together, as timeout(1) sends them, are one interrupt") {
  const TemporaryFolder folder;
  Child child(folder);
  REQUIRE(child.is_running());
  child.send(SIGSTOP);
  child.send(SIGINT);
  child.send(SIGTERM);
  child.send(SIGCONT);
  CHECK(child.wait() == 4);
  CHECK(fs::exists(folder / "out/long/verdict.json"));
}

// It writes to a pipe that nobody reads: the first interrupt is noted only.
TEST_CASE("a later interrupt ends the process at once") {
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  const pid_t pid = fork();
  if (pid == 0) {
    ::dup2(ends[1], STDOUT_FILENO);
    ::execl(MOE_DIAG_EXE, MOE_DIAG_EXE, "synth", "/dev/stdout", nullptr);
    ::_exit(127);
  }
  const auto is_full = [&] {
    pollfd place{ends[1], POLLOUT, 0};
    return ::poll(&place, 1, 0) == 0;
  };
  int status = 0;
  while (!is_full()) REQUIRE(::waitpid(pid, &status, WNOHANG) == 0);
  ::kill(pid, SIGINT);
  std::this_thread::sleep_for(std::chrono::seconds(1));
  CHECK(::waitpid(pid, &status, WNOHANG) == 0);
  ::kill(pid, SIGTERM);
  ::waitpid(pid, &status, 0);
  CHECK(WIFSIGNALED(status));
  CHECK(WTERMSIG(status) == SIGTERM);
  ::close(ends[0]);
  ::close(ends[1]);
}

}  // namespace moe_diag
