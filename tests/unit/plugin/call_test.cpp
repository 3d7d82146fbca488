// SPDX-License-Identifier: MIT
#include "core/plugin/call.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <future>
#include <string>
#include <vector>

#include "core/gguf/mapped_file.hpp"
#include "core/plugin/guard.hpp"
#include "core/plugin/host.hpp"
#include "core/plugin/slow_calls.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/stages.hpp"
#include "tests/support/temporary_folder.hpp"

// The name of a plugin's call, and who says it: an error, a warning, the handler of a fatal signal.
namespace moe_diag {
namespace {

using Catch::Matchers::Contains;
using std::chrono::milliseconds;

TEST_CASE("a call is named with all that is known of it") {
  const std::vector<std::int32_t> positions{4, 7, 9};
  CHECK(text_of(PluginCall{"sink 'a'", "open"}) == "sink 'a': open");
  CHECK(text_of(CallPlace{}) == "");
  CHECK(text_of(CallPlace{"short", "truth", Site{stages::moe_ffn_out, 2}, Site{stages::moe_ffn_out, 2}, positions}) ==
        "prompt 'short', lane 'truth', layer 2, moe_ffn_out, positions 4 to 9");
  CHECK(text_of(CallPlace{"", "", Site{stages::embedding, -1}, {}, std::span(positions).first(1)}) ==
        "embedding, position 4");
  CHECK(text_of(PluginCall{"lane 'f'", "run", {"", "", Site{stages::embedding, -1}, Site{stages::attn_out, 3}, {}}}) ==
        "lane 'f': run: embedding to layer 3, attn_out");
  // A name of any length: the text is cut, nothing is written past it.
  CHECK(text_of(CallPlace{std::string(5000, 'x'), "", {}, {}, {}}).size() == 2048);
}

TEST_CASE("an error of a call is told with its data, whatever its kind") {
  const PluginCall call{"sink 'a'", "consume", {"short", "", Site{stages::lm_head, -1}, {}, {}}};
  CHECK_THROWS_WITH(guard(call, [] { throw std::runtime_error("oops"); }),
                    "sink 'a': consume: prompt 'short', lm_head: oops");
  CHECK_THROWS_WITH(guard(call, [] { throw Error(ErrorKind::usage, "not this stage"); }),
                    "not this stage (prompt 'short', lm_head)");
}

TEST_CASE("a thread knows the call that it is in, and no other thread's") {
  CHECK(current_call() == nullptr);
  const PluginCall outer{"a", "run"}, inner{"b", "read"};
  guard(outer, [&] {
    CHECK(current_call() == &outer);
    guard(inner, [&] { CHECK(current_call() == &inner); });
    CHECK(current_call() == &outer);
    CHECK(std::async(std::launch::async, [] { return current_call(); }).get() == nullptr);
  });
  CHECK_THROWS(guard(outer, [] { throw 1; }));
  CHECK(current_call() == nullptr);
}

TEST_CASE("a call that does not return is told of while it goes on, and again") {
  std::promise<std::string> first, second;
  int told = 0;
  {
    SlowCalls calls(milliseconds(1), [&](const std::string& text) {
      ++told;
      if (told == 1) first.set_value(text);
      if (told == 2) second.set_value(text);
    });
    const PluginCall call{"sink 'a'", "consume", {"short", "", Site{stages::lm_head, -1}, {}, {}}};
    const SlowCalls::Watch watch(calls, call);
    CHECK_THAT(first.get_future().get(), Contains("sink 'a': consume: prompt 'short', lm_head: has not returned for "));
    CHECK_THAT(second.get_future().get(), Contains("sink 'a': consume: "));
  }
  CHECK(told >= 2);
}

TEST_CASE("calls that return in time are not told of") {
  int told = 0;
  {
    SlowCalls calls(std::chrono::hours(1), [&](const std::string&) { ++told; });
    const PluginCall call{"sink 'a'", "consume"};
    for (int i = 0; i < 1000; ++i) const SlowCalls::Watch watch(calls, call);
  }
  CHECK(told == 0);
}

// How a process ends that cuts a mapped file and reads it within a plugin's call; handlers of plugins are installed
// before or after those of the file.
struct Death {
  int code = 0;
  std::string message;
};
Death read_of_a_cut_file(bool plugin_first) {
  const TemporaryFolder folder;
  write_text(folder / "file", std::string(20000, 'x'));
  int pipe[2];
  REQUIRE(::pipe(pipe) == 0);
  const pid_t child = ::fork();
  if (child == 0) {
    for (const int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT}) ::signal(signal, SIG_DFL);  // not the test's
    ::dup2(pipe[1], STDERR_FILENO);
    PluginHost host({std::string(MOE_DIAG_BAD_PLUGINS) + "/good"});
    if (plugin_first) host.list();
    const MappedFile file = MappedFile::open(folder / "file");
    if (!plugin_first) host.list();
    std::filesystem::resize_file(folder / "file", 0);
    guard({"lane 'a'", "run"}, [&] {
      const volatile std::byte* byte = file.bytes().data() + 9000;
      static_cast<void>(*byte);
    });
    ::_exit(0);
  }
  ::close(pipe[1]);
  Death death;
  char buffer[512];
  for (ssize_t n; (n = ::read(pipe[0], buffer, sizeof buffer)) > 0;)
    death.message.append(buffer, static_cast<std::size_t>(n));
  ::close(pipe[0]);
  int status = 0;
  ::waitpid(child, &status, 0);
  death.code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return death;
}

TEST_CASE("a model file that shrinks under a plugin's call is the file's fault, not the plugin's") {
  for (const bool plugin_first : {true, false}) {
    const Death death = read_of_a_cut_file(plugin_first);
    INFO(death.message);
    CHECK(death.code == 4);
    CHECK_THAT(death.message, Contains("/file: byte 9000, in the header, cannot be read any more"));
    CHECK_THAT(death.message, !Contains("lane 'a'"));
  }
}

}  // namespace
}  // namespace moe_diag
