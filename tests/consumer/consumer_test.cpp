// SPDX-License-Identifier: MIT
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <sstream>
#include <string>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/support/locale.hpp"
#include "tests/support/process.hpp"

// What somebody does who has the installed tree and nothing else of the project.
namespace moe_diag {
namespace {

using Catch::Matchers::Contains;
namespace fs = std::filesystem;

Finished succeeded(const std::string& command) {
  Finished finished = run_command(command);
  INFO(command << "\n" << finished.out << finished.err);
  REQUIRE(finished.code == 0);
  return finished;
}

struct Installation {
  std::string prefix;

  std::string tool() const { return quoted(prefix + "/bin/moe-diag") + " "; }

  // Configures and builds a project.
  void compile(const std::string& source, const std::string& build) const {
    succeeded(quoted(MOE_DIAG_CMAKE) + " -S " + quoted(source) + " -B " + quoted(build) + " -G " +
              quoted(MOE_DIAG_GENERATOR) + " -DCMAKE_EXPORT_COMPILE_COMMANDS=ON -DCMAKE_PREFIX_PATH=" + quoted(prefix) +
              " -DCMAKE_CXX_COMPILER=" + quoted(MOE_DIAG_CXX) + " -DCMAKE_CXX_FLAGS=" + quoted(MOE_DIAG_CXX_FLAGS) +
              " -DPython3_EXECUTABLE=" + quoted(MOE_DIAG_PYTHON));
    const Finished built = succeeded(quoted(MOE_DIAG_CMAKE) + " --build " + quoted(build));
    CHECK_THAT(built.out + built.err, !Contains("warning:"));
    // The lines of the page name no build type.
    CHECK_THAT(read_text(build + "/compile_commands.json"), Contains(" -O3 ") && Contains(" -Wall -Wextra "));
  }

  // Builds and tests a project of a sink.
  void build(const std::string& source, const std::string& build) const {
    compile(source, build);
    const Finished tested = succeeded(quoted(MOE_DIAG_CTEST) + " --test-dir " + quoted(build) + " --verbose");
    CHECK_THAT(tested.out, Contains("100% tests passed"));
    CHECK_THAT(tested.out, Contains("agree with numpy") && Contains("17 kept, 0 broken"));
  }

  void begin_and_build(const std::string& name, const std::string& folder) const {
    const Finished begun = succeeded(tool() + "new sink " + name + " " + quoted(folder));
    const bool plain = prefix.find(' ') == std::string::npos;
    CHECK_THAT(begun.out, Contains("-DCMAKE_PREFIX_PATH=" + (plain ? prefix : quoted(prefix)) + "\n"));
    build(folder, folder + "/build");
  }
};

// Each promise that the page about sinks shows as kept is one that the checks print, in this order; notes come after.
void check_page(const std::string& printed) {
  const std::string page = read_text(std::string(MOE_DIAG_SOURCE_DIR) + "/docs/write-a-sink.md");
  std::istringstream lines(page.substr(page.find("<!-- conformance -->")));
  std::size_t at = 0, shown = 0;
  for (std::string line; std::getline(lines, line) && line != "<!-- end of conformance -->";) {
    if (!line.starts_with("ok ")) continue;
    INFO(line);
    at = printed.find(line, at);
    REQUIRE(at != std::string::npos);
    ++shown;
  }
  CHECK(shown == 17);
}

TEST_CASE("an installation is all that a sink needs, wherever it lies") {
  const TemporaryFolder folder, locales;
  if (!make_comma_locale(locales).empty()) ::setenv("LOCPATH", locales.str().c_str(), 1);
  const Installation first{folder / "first"}, moved{folder / "some where/else"};
  succeeded(quoted(MOE_DIAG_CMAKE) + " --install " + quoted(MOE_DIAG_BINARY_DIR) + " --strip --prefix " +
            quoted(first.prefix));
  CHECK(run_command("grep -rlF " + quoted(first.prefix) + " " + quoted(first.prefix)).out == "");
  first.begin_and_build("loudness", folder / "loudness");

  check_page(
      succeeded(first.tool() + "plugins --conformance " + quoted(folder / "loudness/build/moe_diag_sink_loudness.so"))
          .out);

  // Installed beside the others it needs no --plugin-dir.
  succeeded(quoted(MOE_DIAG_CMAKE) + " --install " + quoted(folder / "loudness/build") + " --prefix " +
            quoted(first.prefix));
  const std::string contract = quoted(folder / "loudness/loudness.yaml");
  succeeded(first.tool() + "capture " + contract + " --out " + quoted(folder / "one"));

  fs::create_directories(folder / "some where");
  fs::rename(first.prefix, moved.prefix);
  succeeded(moved.tool() + "capture " + contract + " --out " + quoted(folder / "two"));
  CHECK(read_text(folder / "one/loudness.npy") == read_text(folder / "two/loudness.npy"));
  succeeded(moved.tool() + "run " + quoted(moved.prefix + "/share/moe-diag/contracts/quickstart.yaml") + " --out " +
            quoted(folder / "three"));
  moved.begin_and_build("again", folder / "again");
  moved.build(moved.prefix + "/share/moe-diag/docs/examples/coactivation", folder / "coactivation");
  CHECK_THAT(succeeded(moved.tool() + "new sink third " + quoted(folder / "third")).out,
             Contains(moved.prefix + "/share/moe-diag/docs/write-a-sink.md"));

  // Built in another way than the runner, it is refused with the difference.
  fs::create_directories(folder / "debug");
  succeeded(quoted(MOE_DIAG_CXX) + " -std=c++20 -shared -fPIC -D_GLIBCXX_DEBUG " + MOE_DIAG_CXX_FLAGS + " -I" +
            quoted(moved.prefix + "/include/moe-diag") + " " + quoted(folder / "again/again_sink.cpp") + " -o " +
            quoted(folder / "debug/moe_diag_sink_again.so"));
  const Finished refused = run_command(moved.tool() + "plugins --plugin-dir " + quoted(folder / "debug"));
  CHECK(refused.code == 4);
  CHECK_THAT(refused.out,
             Contains("refused: its build stamp is") && Contains("debug_mode=on instead of debug_mode=off"));
}

// A file with one word of it replaced.
void edit(const std::string& path, const std::string& from, const std::string& to) {
  std::string text = read_text(path);
  const std::size_t at = text.find(from);
  INFO(path << ": " << from);
  REQUIRE(at != std::string::npos);
  write_text(path, text.replace(at, from.size(), to));
}

// The page about backends shows the kernel as it is written, but for its mistake, and what is said of the mistake.
void check_kernel_page(const std::string& source, const std::string& report) {
  const std::string page = read_text(std::string(MOE_DIAG_SOURCE_DIR) + "/docs/wrap-your-engine.md");
  std::string kernel = read_text(source);
  const std::string right = "expert = call.ids[slot]", wrong = "expert = (call.ids[slot] + 1) % call.weight.experts";
  CHECK_THAT(page, Contains(wrong));
  CHECK_THAT(page, Contains("```cpp\n" + kernel.replace(kernel.find(wrong), wrong.size(), right) + "```"));
  CHECK_THAT(page, Contains(report.substr(0, report.find("\nOther divergences"))));
}

TEST_CASE("a new kernel and a new backend are judged as they are, and with a mistake in them") {
  const TemporaryFolder folder;
  const Installation installed{folder / "tree"};
  succeeded(quoted(MOE_DIAG_CMAKE) + " --install " + quoted(MOE_DIAG_BINARY_DIR) + " --strip --prefix " +
            quoted(installed.prefix));
  struct Project {
    std::string arguments, name, source, right, wrong;
    std::vector<std::string> said;
  };
  const std::string ids = "expert = call.ids[slot]", off = "expert = (call.ids[slot] + 1) % call.";
  for (const Project& p : std::vector<Project>{
           {"kernel",
            "products",
            "products_kernel.cpp",
            ids,
            off + "weight.experts",
            {"FALSIFIED", "layer 0, moe_expert_gate", "wrong_tensor", "computed with the weights of expert id + 1"}},
           {"kernel --span moe_ffn",
            "experts",
            "experts_kernel.cpp",
            ids,
            off + "gate.experts",
            {"FALSIFIED", "layer 0, moe_ffn_out", "one kernel computes moe_expert_gate to moe_ffn_out"}},
           {"backend",
            "engine",
            "engine_backend.cpp",
            "a[i] + b[i]",
            "a[i] - b[i]",
            {"FALSIFIED", "layer 0, post_attn_residual", "operator"}}}) {
    INFO(p.arguments);
    const std::string at = folder / p.name;
    succeeded(installed.tool() + "new " + p.arguments + " " + p.name + " " + quoted(at));
    installed.compile(at, at + "/build");
    CHECK_THAT(succeeded(quoted(MOE_DIAG_CTEST) + " --test-dir " + quoted(at + "/build") + " --verbose").out,
               Contains("100% tests passed") && Contains("HELD"));
    edit(at + "/" + p.source, p.right, p.wrong);
    succeeded(quoted(MOE_DIAG_CMAKE) + " --build " + quoted(at + "/build"));
    const Finished judged = run_command(installed.tool() + "run " + quoted(at + "/" + p.name + ".yaml") + " --out " +
                                        quoted(folder / (p.name + " out")) + " --plugin-dir " + quoted(at + "/build") +
                                        " --plugin-dir " + quoted(installed.prefix + "/lib/moe-diag/plugins"));
    CHECK(judged.code == 1);
    for (const std::string& words : p.said) CHECK_THAT(judged.out, Contains(words));
    if (p.name == "products") check_kernel_page(at + "/" + p.source, judged.out);
  }
}

TEST_CASE("a new sink has a name that is its own, and a folder that is empty") {
  const TemporaryFolder folder;
  write_text(folder / "full/file", "mine");
  fs::create_directories(folder / "empty");
  struct Refused {
    std::string arguments;
    std::string message;
  };
  const std::string at = " " + quoted(folder / "new");
  for (const Refused& refused : std::vector<Refused>{
           {"Load" + at, "'Load' cannot be the name of a sink"},
           {"expert-load" + at, "wanted snake_case"},
           {"_load" + at, "a letter first"},
           {"load_" + at, "cannot be the name"},
           {"a__b" + at, "single '_' between"},
           {"2nd" + at, "a letter first"},
           {"''" + at, "'' cannot be the name"},
           {"../x" + at, "'../x' cannot be the name"},
           {std::string(41, 'a') + at, "at most 40"},
           {"npy" + at, "there is a sink 'npy' already"},
           {"cpu" + at, "there is a backend 'cpu' already"},
           {"load ''", "DIR is empty"},
           {"load " + quoted(folder / "full"), "is there already; name a new or an empty folder"},
           {"load " + quoted(folder / "full/file"), "is there already"},
           {"load " + quoted(folder / "no/such/folder"), "cannot make the folder"},
           {"load " + quoted(folder / "full/file/below"), "cannot make the folder"},
       }) {
    INFO(refused.arguments);
    const Finished finished = run_tool("new sink " + refused.arguments);
    CHECK(finished.code == 2);
    CHECK_THAT(finished.err, Contains(refused.message));
    CHECK_FALSE(fs::exists(folder / "new"));
  }
  CHECK(run_tool("new sink load").code == 2);
  CHECK(run_tool("new widget load " + quoted(folder / "new")).code == 2);
  CHECK(read_text(folder / "full/file") == "mine");

  CHECK(run_tool("new sink expert_load " + quoted(folder / "empty")).code == 0);
  std::vector<std::string> files;
  for (const auto& entry : fs::directory_iterator(folder / "empty")) {
    files.push_back(entry.path().filename().string());
    const std::string text = read_text(entry.path().string());
    CHECK(text.find("my_name") == std::string::npos);
    CHECK(text.find("MyName") == std::string::npos);
  }
  std::sort(files.begin(), files.end());
  CHECK(files ==
        std::vector<std::string>{"CMakeLists.txt", "check_expert_load.py", "expert_load.yaml", "expert_load_sink.cpp"});
  CHECK_THAT(read_text(folder / "empty/expert_load_sink.cpp"), Contains("class ExpertLoadSink"));
}

TEST_CASE("a new sink that cannot be written whole leaves nothing") {
  const TemporaryFolder folder;
  fs::create_directories(folder / "empty");
  for (const char* target : {"new", "empty"}) {
    // Files may grow to three blocks of 512 bytes: with a long name the sink itself does not fit.
    const Finished finished = run_command("trap '' XFSZ; ulimit -f 3; " + quoted(MOE_DIAG_EXE) + " new sink " +
                                          std::string(40, 'a') + " " + quoted(folder / target));
    CHECK(finished.code == 4);
    CHECK_THAT(finished.err, Contains("_sink.cpp.partial-") && Contains("cannot write: File too large"));
  }
  CHECK_FALSE(fs::exists(folder / "new"));
  CHECK(fs::is_empty(folder / "empty"));
}

TEST_CASE("the page about sinks shows what `new sink` writes and what is built here") {
  const TemporaryFolder folder;
  CHECK(run_tool("new sink loudness " + quoted(folder / "loudness")).code == 0);
  const std::string tree = MOE_DIAG_SOURCE_DIR;
  const std::string page = read_text(tree + "/docs/write-a-sink.md");
  for (const std::string& file : {folder / "loudness/loudness_sink.cpp", folder / "loudness/loudness.yaml",
                                  folder / "loudness/CMakeLists.txt", folder / "loudness/check_loudness.py"}) {
    INFO(file);
    CHECK_THAT(page, Contains("```" +
                              std::string(file.ends_with("cpp")    ? "cpp"
                                          : file.ends_with("yaml") ? "yaml"
                                          : file.ends_with("py")   ? "python"
                                                                   : "cmake") +
                              "\n" + read_text(file) + "```"));
  }
  const std::string example = read_text(tree + "/docs/examples/coactivation/coactivation_sink.cpp");
  CHECK_THAT(page, Contains("```cpp\n" + example.substr(example.find("  void consume")) + "```"));
}

}  // namespace
}  // namespace moe_diag
