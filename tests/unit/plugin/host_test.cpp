// SPDX-License-Identifier: MIT
#include <dlfcn.h>
#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>

#include "core/api/abi.hpp"
#include "core/plugin/guard.hpp"
#include "core/plugin/host.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/made_run.hpp"
#include "tests/support/stages.hpp"
#include "tests/support/temporary_folder.hpp"

namespace moe_diag {
namespace {

using Catch::Matchers::Contains;
namespace fs = std::filesystem;

std::string bad_folder(const std::string& test_case) { return std::string(MOE_DIAG_BAD_PLUGINS) + "/" + test_case; }
std::string bad_path(const std::string& test_case) { return bad_folder(test_case) + "/moe_diag_sink_bad.so"; }

struct Failure {
  ErrorKind kind = ErrorKind::usage;
  std::string message;
};

// The error of `body`, which must end with one.
template <class Body>
Failure failure_of(Body&& body) {
  try {
    body();
  } catch (const Error& e) {
    return {e.kind(), e.what()};
  }
  FAIL("no error was thrown");
  return {};
}

Failure failure_of_case(const std::string& test_case) {
  return failure_of([&] {
    PluginHost host({bad_folder(test_case)});
    host.make_sink("bad", Options("sink 'x'", "c.yaml:1:1"));
  });
}

class Environment {
 public:
  explicit Environment(const char* value) {
    if (value)
      ::setenv("MOE_DIAG_PLUGIN_PATH", value, 1);
    else
      ::unsetenv("MOE_DIAG_PLUGIN_PATH");
  }
  ~Environment() { ::unsetenv("MOE_DIAG_PLUGIN_PATH"); }
};

TEST_CASE("a good plugin of the bad ones' folder is taken") {
  PluginHost host({bad_folder("good")});
  CHECK(host.make_sink("bad", Options()) != nullptr);
  const auto records = host.list();
  REQUIRE(records.size() == 1);
  CHECK(records[0].name == "bad");
  CHECK(records[0].kind == PluginKind::sink);
  CHECK(records[0].summary == "does nothing, well");
  CHECK(records[0].refusal.empty());
}

TEST_CASE("a bad plugin is refused with path, found, wanted and remedy") {
  struct Refusal {
    const char* test_case;
    std::vector<std::string> says;
  };
  const std::vector<Refusal> refusals = {
      {"not_a_library", {"not a shared library", "21 bytes"}},
      {"undefined_symbol", {"cannot be loaded", "undefined symbol: moe_diag_symbol_that_nobody_has"}},
      {"no_manifest", {"exports no moe_diag_manifest", "MOE_DIAG_SINK"}},
      {"null_manifest", {"exports no moe_diag_manifest"}},
      {"no_create", {"exports no moe_diag_create"}},
      {"bad_magic", {"starts with 'X\\x0aEDIAG\\x00'", "wanted 'MOEDIAG\\x00'"}},
      {"wrong_abi", {"it has ABI 4711, this moe-diag has ABI " + std::to_string(abi_version)}},
      {"short_manifest", {"16 bytes", "wanted at least"}},
      {"null_name", {"no name"}},
      {"null_stamp", {"no build stamp"}},
      {"wrong_stamp",
       {"cxx11_abi=7 sanitizer=none", MOE_DIAG_BUILD_STAMP, "cxx11_abi=7 instead of cxx11_abi=", "rebuild"}},
      {"wrong_kind", {"it is a backend, its file name says a sink"}},
      {"unknown_kind", {"it is kind 77"}},
      {"wrong_name", {"it calls itself 'worse', its file name says 'bad'", "moe_diag_sink_worse.so"}},
  };
  for (const Refusal& refusal : refusals) {
    INFO(refusal.test_case);
    const Failure failure = failure_of_case(refusal.test_case);
    CHECK(failure.kind == ErrorKind::environment);
    CHECK_THAT(failure.message, Contains(bad_path(refusal.test_case) + ": refused: "));
    for (const std::string& text : refusal.says) CHECK_THAT(failure.message, Contains(text));

    PluginHost host({bad_folder(refusal.test_case)});
    const auto records = host.list();
    REQUIRE(records.size() == 1);
    CHECK(records[0].refusal == failure.message);
  }
}

TEST_CASE("a factory that fails is an error that names the plugin") {
  for (const auto& [test_case, says] : {std::pair("throwing_factory", "create: no licence found"),
                                        std::pair("throwing_factory_int", "create: threw something that is not an"),
                                        std::pair("null_factory", "create: returned null")}) {
    INFO(test_case);
    const Failure failure = failure_of_case(test_case);
    CHECK(failure.kind == ErrorKind::environment);
    CHECK_THAT(failure.message, Contains(bad_path(test_case) + ": sink 'bad': "));
    CHECK_THAT(failure.message, Contains(says));
  }
}

TEST_CASE("a sink that throws while it is used is caught by guard") {
  MadeRun run("/nowhere");
  const auto use = [&](const std::string& test_case) {
    return failure_of([&] {
      PluginHost host({bad_folder(test_case)});
      const auto sink = host.make_sink("bad", Options());
      const MadeEvent event = made_event(0, 0, {stages::lm_head, -1}, {0}, DType::f32, {3}, 1);
      guard({"sink 'bad'", "open"}, [&] { sink->open(run.info); });
      guard({"sink 'bad'", "consume"}, [&] { sink->consume(event.view()); });
      guard({"sink 'bad'", "close"}, [&] { sink->close(); });
    });
  };
  CHECK(use("throwing_open").message == "sink 'bad': open: the disk is full");
  CHECK(use("throwing_consume").message ==
        "sink 'bad': consume: out of memory; shorten the prompts, leave lanes out or capture less");
  CHECK(use("throwing_close").message == "sink 'bad': close: threw something that is not an exception");
  CHECK(use("throwing_close").kind == ErrorKind::environment);
}

TEST_CASE("guard keeps the kind and the text of a usage error") {
  const Failure failure = failure_of([] {
    guard({"sink 'x'", "create"}, [] { throw Error(ErrorKind::usage, "c.yaml:3:1: wrong"); });
  });
  CHECK(failure.kind == ErrorKind::usage);
  CHECK(failure.message == "c.yaml:3:1: wrong");
}

TEST_CASE("an unknown name is refused with the names there are and where was searched") {
  PluginHost host({MOE_DIAG_PLUGINS});
  const Failure failure = failure_of([&] { host.make_sink("npz", Options()); });
  CHECK(failure.kind == ErrorKind::usage);
  CHECK_THAT(failure.message, Contains("there is no sink 'npz', did you mean 'npy'?"));
  CHECK_THAT(failure.message, Contains("npy, stats"));
  CHECK_THAT(failure.message, Contains(MOE_DIAG_PLUGINS));
  CHECK_THAT(failure_of([&] { host.make_backend("npy", Options()); }).message, Contains("('npy' is a sink)"));
}

TEST_CASE("an option that nobody reads is refused where it stands") {
  PluginHost host({MOE_DIAG_PLUGINS});
  const Options options = made_options("sink 'dump'", {{"dir", "dump"}, {"dirr", "x"}});
  const Failure failure = failure_of([&] { host.make_sink("npy", options); });
  CHECK(failure.kind == ErrorKind::usage);
  CHECK(failure.message ==
        "made.yaml:3:3: sink 'dump': plugin 'npy': unknown key 'dirr', did you mean 'dir'? Known: dir");
}

TEST_CASE("of one name in two folders the first is taken and the other is listed as shadowed") {
  PluginHost host({bad_folder("good"), bad_folder("wrong_abi")});
  CHECK(host.make_sink("bad", Options()) != nullptr);
  const auto records = host.list();
  REQUIRE(records.size() == 2);
  CHECK(records[0].shadowed_by.empty());
  CHECK(records[1].path == bad_path("wrong_abi"));
  CHECK(records[1].shadowed_by == bad_path("good"));
  CHECK(records[1].refusal.empty());

  // A refused plugin is not quietly replaced by one further on.
  PluginHost reversed({bad_folder("wrong_abi"), bad_folder("good")});
  CHECK_THROWS_AS(reversed.make_sink("bad", Options()), Error);
}

TEST_CASE("a folder named twice is searched once") {
  PluginHost host({bad_folder("good"), bad_folder("good") + "/../good"});
  CHECK(host.list().size() == 1);
}

TEST_CASE("the search path: --plugin-dir, else the environment") {
  const Environment environment((":" + bad_folder("wrong_abi") + "::/no/such/folder").c_str());
  CHECK(PluginHost({}).list().at(0).path == bad_path("wrong_abi"));
  CHECK(PluginHost({}).list().size() == 1);
  CHECK(PluginHost({bad_folder("good")}).list().at(0).path == bad_path("good"));
  CHECK_THAT(failure_of([] { PluginHost({}).make_sink("npz", Options()); }).message,
             Contains("/no/such/folder (not there)"));
}

TEST_CASE("nothing is searched in the working directory") {
  TemporaryFolder folder;
  fs::copy_file(bad_path("good"), folder / "moe_diag_sink_bad.so");
  const fs::path before = fs::current_path();
  fs::current_path(folder.str());
  {
    const Environment unset(nullptr);
    for (const PluginRecord& record : PluginHost({}).list()) CHECK(record.name != "bad");
  }
  {
    const Environment only_separators("::");
    CHECK(PluginHost({}).list().empty());
  }
  fs::current_path(before);
}

TEST_CASE("a --plugin-dir that is not there is a usage error at the first question") {
  for (const char* folder : {"/no/such/folder", ""}) {
    PluginHost host({folder});
    CHECK(failure_of([&] { host.list(); }).kind == ErrorKind::usage);
  }
}

TEST_CASE("files that announce no plugin are left alone") {
  TemporaryFolder folder;
  for (const char* name :
       {"libother.so", "moe_diag_sink_.so", "moe_diag_widget_x.so", "moe_diag_sink_x.so.1", "README"})
    fs::copy_file(bad_path("wrong_abi"), folder / name);
  CHECK(PluginHost({folder.str()}).list().empty());
}

TEST_CASE("a plugin that is a folder or cut off anywhere is refused, not mapped") {
  TemporaryFolder folder;
  const std::string whole = read_text(bad_path("good"));
  const std::string path = folder / "moe_diag_sink_bad.so";
  fs::create_directory(path);
  CHECK_THAT(PluginHost({folder.str()}).list().at(0).refusal, Contains("it is not a file"));
  fs::remove(path);
  std::vector<std::size_t> sizes = {0, 1, 3, 4, 15, 16, 40, 63, 64, 100, 500, 1000, 4096, 8000};
  for (const std::size_t size : sizes) {
    INFO(size);
    write_text(path, std::string_view(whole).substr(0, size));
    CHECK_THAT(PluginHost({folder.str()}).list().at(0).refusal, Contains("refused: it is "));
  }
}

TEST_CASE("libraries stay loaded after their host is gone") {
  PluginHost({bad_folder("throwing_close")}).make_sink("bad", Options());
  void* handle = ::dlopen(bad_path("throwing_close").c_str(), RTLD_NOW | RTLD_NOLOAD);
  CHECK(handle != nullptr);
  if (handle) ::dlclose(handle);
}

}  // namespace
}  // namespace moe_diag
