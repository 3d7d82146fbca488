// SPDX-License-Identifier: MIT
#include <sys/stat.h>

#include <csignal>
#include <filesystem>
#include <string>
#include <vector>

#include "core/api/abi.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/process.hpp"

// Plugins that misbehave, as whoever runs the program meets them: message, exit code, what is kept.
namespace moe_diag {
namespace {

using Catch::Matchers::Contains;
namespace fs = std::filesystem;

std::string bad_folder(const std::string& test_case) { return std::string(MOE_DIAG_BAD_PLUGINS) + "/" + test_case; }

// A capture of three events for the sink `bad` and for a good one.
class Capture {
 public:
  Capture() {
    write_text(folder_ / "c.yaml", R"(
metadata: {id: bad, version: 1.0.0, description: feeds a sink that misbehaves, references: []}
model: {synthetic: tiny, seed: 7}
prompts: [{id: short, tokens: [3, 141, 59]}]
oracle: truth
lanes: {truth: {backend: cpu, numerics: f64}}
capture: [{stages: [embedding, final_norm, lm_head], lanes: all, to: [mine, other]}]
sinks:
  other: {sink: stats, file: other.json}
  mine: {sink: bad}
)");
  }

  std::string command(const std::string& test_case, const std::string& options = "") const {
    return quoted(MOE_DIAG_EXE) + " capture " + quoted(folder_ / "c.yaml") + " --out " + quoted(folder_ / "out") +
           " --overwrite --plugin-dir " + quoted(bad_folder(test_case)) + " --plugin-dir " + quoted(MOE_DIAG_PLUGINS) +
           " " + options;
  }
  Finished with(const std::string& test_case, const std::string& options = "") const {
    return run_command(command(test_case, options));
  }
  std::string path(const std::string& file) const { return folder_ / ("out/" + file); }
  bool has(const std::string& file) const { return fs::exists(path(file)); }

 private:
  TemporaryFolder folder_;
};

TEST_CASE("a plugin that is refused or fails ends a run with exit 4 and a message of its own") {
  struct Case {
    const char* name;
    std::string message;
    bool other_complete = false;
  };
  const std::string sanitizer = MOE_DIAG_STAMP_SANITIZER == std::string("none") ? "address" : "none";
  for (
      const Case& c : std::vector<Case>{
          {"not_a_library", "refused: it is not a shared library (21 bytes, no ELF header), wanted a plugin"},
          {"no_manifest", "refused: it exports no moe_diag_manifest"},
          {"wrong_abi", "refused: it has ABI 4711, this moe-diag has ABI "},
          {"wrong_stamp", "cxx11_abi=7 instead of cxx11_abi="},
          {"debug_mode", "(debug_mode=on instead of debug_mode=off): rebuild both with one compiler"},
          {"old_abi", "(cxx11_abi=0 instead of cxx11_abi=1)"},
          {"other_standard", " instead of cplusplus=202002L)"},
          {"other_sanitizer", "(sanitizer=" + sanitizer + " instead of sanitizer=" MOE_DIAG_STAMP_SANITIZER ")"},
          {"wrong_kind", "refused: it is a backend, its file name says a sink"},
          {"wrong_name", "refused: it calls itself 'worse', its file name says 'bad'"},
          {"undefined_symbol", "undefined symbol: moe_diag_symbol_that_nobody_has"},
          {"nameless_option", "refused: its manifest has an option without a name"},
          {"unlisted_option", "sink 'bad' reads the option 'secret', which it does not list: name it in MOE_DIAG_SINK"},
          {"throwing_factory", "sink 'bad': create: no licence found"},
          {"throwing_factory_int", "sink 'bad': create: threw something that is not an exception"},
          {"null_factory", "sink 'bad': create: returned null, wanted an object"},
          {"throwing_open", "sink 'mine' (plugin bad): open: the disk is full"},
          {"throwing_consume",
           "sink 'mine' (plugin bad): consume: prompt 'short', lane 'truth', embedding, positions 0 to 2: out of "
           "memory"},
          {"wrong_type",
           "sink 'mine' (plugin bad): consume: prompt 'short', lane 'truth', embedding, positions 0 to 2: as<float>() "
           "wants a tensor of f32, found f64: ask its dtype and use as<double>(), or value(i), which reads every type"},
          {"throwing_close", "sink 'mine' (plugin bad): close: threw something that is not an exception", true},
      }) {
    const Capture capture;
    const Finished finished = capture.with(c.name);
    INFO(c.name << "\n" << finished.out << finished.err);
    CHECK(finished.code == 4);
    CHECK_THAT(finished.out + finished.err, Contains(c.message));
    CHECK(capture.has("other.json") == c.other_complete);
  }
}

TEST_CASE("a good plugin in the same place is taken, and a slow one is waited for") {
  const Capture capture;
  CHECK(capture.with("good").code == 0);
  CHECK(capture.has("other.json"));

  const Finished slow = capture.with("slow", "--set 'sinks.mine={sink: bad, file: positions.npy}'");
  INFO(slow.out << slow.err);
  CHECK(slow.code == 0);
  // Three events of the positions 0 to 2, the last of each.
  const std::string array = read_text(capture.path("positions.npy"));
  REQUIRE(array.size() == 128 + 3 * sizeof(std::int32_t));
  for (std::size_t i = 0; i < 3; ++i) CHECK(array[128 + i * sizeof(std::int32_t)] == 2);
}

TEST_CASE("a plugin that ends the process is named, with its call, and the signal keeps its exit status") {
  // A sanitizer says more, and ends the process in its own way.
  const bool plain = MOE_DIAG_STAMP_SANITIZER == std::string("none");
  const std::string file = ", in " + bad_folder("dying") + "/moe_diag_sink_bad.so+0x";
  const std::string at_site = "consume: prompt 'short', lane 'truth', final_norm, positions 0 to 2";
  struct Case {
    const char* at;
    int signal;
    std::string call;
  };
  for (const Case& c : std::vector<Case>{{"open", SIGABRT, "open"},
                                         {"consume", SIGSEGV, at_site},
                                         {"stack", SIGSEGV, at_site},
                                         {"close", SIGFPE, "close"}}) {
    const Finished finished = Capture().with("dying", "--set 'sinks.mine={sink: bad, at: " + std::string(c.at) + "}'");
    INFO(c.at << "\n" << finished.out << finished.err);
    if (plain) CHECK(finished.code == 128 + c.signal);
    CHECK(finished.code != 0);
    CHECK_THAT(finished.err,
               Contains("moe-diag: error: sink 'mine' (plugin bad): " + c.call + ": the process died in this call: "));
    CHECK_THAT(finished.err, Contains(file));
  }
  const Finished thread = Capture().with("dying", "--set 'sinks.mine={sink: bad, at: thread}'");
  INFO(thread.out << thread.err);
  if (plain) CHECK(thread.code == 128 + SIGSEGV);
  CHECK_THAT(thread.err, Contains(bad_folder("dying") + "/moe_diag_sink_bad.so+0x") &&
                             Contains(": the process died in a thread of this plugin: segmentation fault"));
}

TEST_CASE("a signal from another process is not laid at a plugin's door") {
  const Capture capture;
  const Finished finished =
      run_command(capture.command("waiting") + " & pid=$!; until [ -e " + quoted(capture.path("waits")) +
                  " ] || ! kill -0 $pid; do sleep 0.01; done; kill -SEGV $pid; wait $pid");
  INFO(finished.out << finished.err);
  if (MOE_DIAG_STAMP_SANITIZER == std::string("none")) CHECK(finished.code == 128 + SIGSEGV);
  CHECK(finished.code != 0);
  CHECK_THAT(finished.err, !Contains("moe-diag: error"));
}

TEST_CASE("of two plugins with one name the first is used, and the list says so") {
  const Finished list = run_tool("--plugin-dir " + quoted(bad_folder("good")) + " --plugin-dir " +
                                 quoted(bad_folder("wrong_abi")) + " plugins");
  CHECK(list.code == 0);
  CHECK_THAT(list.out, Contains("shadowed\n  " + bad_folder("wrong_abi") + "/moe_diag_sink_bad.so: not used, " +
                                bad_folder("good") + "/moe_diag_sink_bad.so comes first"));
  const Finished refused = run_tool("--plugin-dir " + quoted(bad_folder("wrong_abi")) + " --plugin-dir " +
                                    quoted(bad_folder("good")) + " plugins");
  CHECK(refused.code == 4);
  CHECK_THAT(refused.out, Contains("refused: it has ABI 4711"));
}

TEST_CASE("a plugin folder that everyone may write to is warned of, once") {
  const TemporaryFolder folder;
  fs::copy(bad_folder("good"), folder / "plugins");
  const auto list = [&] { return run_tool("plugins --plugin-dir " + quoted(folder / "plugins")); };
  CHECK(list().err.empty());
  REQUIRE(::chmod((folder / "plugins").c_str(), 0777) == 0);
  const Finished open = list();
  CHECK(open.code == 0);
  CHECK(open.err == "warning: plugin folder " + folder / "plugins" + " can be written by everyone: chmod o-w it\n");
}

#if defined(__SANITIZE_ADDRESS__)
TEST_CASE("a sink that writes past its view is found by the address sanitizer, at its line") {
  const Finished finished =
      run_tool("plugins --conformance " + quoted(bad_folder("breaks_promise") + "/moe_diag_sink_bad.so") +
               " --option breaks=past_view");
  INFO(finished.out << finished.err);
  CHECK(finished.code == 1);
  CHECK_THAT(finished.err, Contains("AddressSanitizer") && Contains("breaks_promise.cpp"));
}
#endif

}  // namespace
}  // namespace moe_diag
