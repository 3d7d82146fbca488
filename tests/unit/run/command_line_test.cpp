// SPDX-License-Identifier: MIT
// The runner as a user meets it: exit codes, messages, and nothing half written.
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/support/process.hpp"

namespace moe_diag {
namespace {

namespace fs = std::filesystem;
using Catch::Matchers::Contains;

const std::string quickstart = std::string(MOE_DIAG_SOURCE_DIR) + "/contracts/quickstart.yaml";

std::string run_quickstart(const TemporaryFolder& folder, const std::string& more = "") {
  return "run " + quoted(quickstart) + " --out " + quoted(folder / "out") + " " + more;
}

// Of memory, at the most at once; what a sanitizer takes for itself included.
std::int64_t kilobytes_to_inspect(const std::string& path) {
  const pid_t child = fork();
  if (child == 0) {
    ::dup2(::open("/dev/null", O_WRONLY), STDOUT_FILENO);
    ::execl(MOE_DIAG_EXE, MOE_DIAG_EXE, "inspect", path.c_str(), nullptr);
    ::_exit(127);
  }
  int status = 0;
  struct rusage used = {};
  ::wait4(child, &status, 0, &used);
  REQUIRE(status == 0);
  return used.ru_maxrss;
}

}  // namespace

TEST_CASE("the quickstart holds, writes what it says, and exits 0") {
  const TemporaryFolder folder;
  const Finished run = run_tool(run_quickstart(folder, "--controls"));
  CHECK(run.code == 0);
  CHECK(run.err.empty());
  CHECK_THAT(run.out, Contains("HELD") && Contains("0 untested"));
  const auto verdict = nlohmann::json::parse(read_text(folder / "out/verdict.json"));
  CHECK(verdict["outcomes"]["held"] == verdict["falsifiers"].size());
  for (const auto& f : verdict["falsifiers"]) {
    CHECK(f["samples"] > 0);
    CHECK(!f["controls"].empty());
  }
  CHECK(fs::exists(folder / "out/dump/manifest.json"));
  CHECK(fs::exists(folder / "out/stats.json"));
}

// A machine without a GPU judges what needs none; of that all holds, and every control of it trips.
TEST_CASE("every shipped contract holds on the small model, and every control trips") {
  ::unsetenv("QWEN3_MOE_GGUF");
  std::string command = "run --controls --allow-untested 'lane:cuda*'";
  std::size_t contracts = 0;
  for (const auto& entry : fs::directory_iterator(std::string(MOE_DIAG_SOURCE_DIR) + "/contracts")) {
    if (entry.path().extension() != ".yaml") continue;
    command += " " + quoted(entry.path());
    ++contracts;
  }
  CHECK(contracts >= 10);
  const TemporaryFolder folder;
  const Finished run =
      run_tool(command + " --out " + quoted(folder / "out") + " --json " + quoted(folder / "verdicts.json"));
  INFO(run.out << run.err);
  CHECK(run.code == 0);
  const auto document = nlohmann::json::parse(read_text(folder / "verdicts.json"));
  CHECK(document["verdicts"].size() == contracts);
  for (const auto& verdict : document["verdicts"])
    for (const auto& f : verdict["falsifiers"]) {
      INFO(f["id"]);
      const bool held = f["outcome"] == "held";
      CHECK((held || f["allowed"] == true));
      CHECK((!held || f["controls_apply"] == false || !f["controls"].empty()));
      for (const auto& control : f["controls"]) CHECK(control["tripped"] == true);
    }
}

TEST_CASE("a planted fault exits 1 and names its site") {
  const TemporaryFolder folder;
  const Finished run =
      run_tool(run_quickstart(folder, "--inject '{inject: nan, stage: moe_ffn_out, layer: 3, lane: step}'"));
  CHECK(run.code == 1);
  CHECK_THAT(run.out, Contains("FALSIFIED") && Contains("layer 3, moe_ffn_out"));
}

TEST_CASE("an existing capture is refused unless it may be replaced") {
  const TemporaryFolder folder;
  REQUIRE(run_tool(run_quickstart(folder)).code == 0);
  const std::string before = read_text(folder / "out/dump/manifest.json");
  const Finished again = run_tool(run_quickstart(folder));
  CHECK(again.code == 2);
  CHECK_THAT(again.err, Contains("--overwrite"));
  CHECK(read_text(folder / "out/dump/manifest.json") == before);
  CHECK(run_tool(run_quickstart(folder, "--overwrite")).code == 0);
}

TEST_CASE("two runs write the same capture, byte by byte") {
  const TemporaryFolder folder;
  REQUIRE(run_tool(run_quickstart(folder)).code == 0);
  REQUIRE(run_tool("run " + quoted(quickstart) + " --threads 1 --out " + quoted(folder / "again")).code == 0);
  int files = 0;
  for (const auto& entry : fs::recursive_directory_iterator(folder / "out/dump")) {
    if (entry.path().extension() != ".npy") continue;
    const fs::path other = fs::path(folder / "again/dump") / fs::relative(entry.path(), folder / "out/dump");
    CHECK(read_text(entry.path()) == read_text(other));
    ++files;
  }
  CHECK(files > 50);
}

TEST_CASE("wrong command lines exit 2 and say what is wrong") {
  for (const std::string arguments : {"", "walk", "run", "run a.yaml --no-such-option", "run a.yaml --threads 0"}) {
    INFO(arguments);
    CHECK(run_tool(arguments).code == 2);
  }
  CHECK_THAT(run_tool("run /no/such/contract.yaml").err, Contains("/no/such/contract.yaml"));
  CHECK(run_tool("run /no/such/contract.yaml").code == 2);
  const Finished set = run_tool("run " + quoted(quickstart) + " --set nonsense");
  CHECK(set.code == 2);
  CHECK_THAT(set.err, Contains("KEY=VALUE"));
  const Finished fault = run_tool("run " + quoted(quickstart) + " --inject '{inject: melt, stage: attn_out}'");
  CHECK(fault.code == 2);
  CHECK_THAT(fault.err, Contains("melt"));
}

TEST_CASE("wrong contracts exit 2, point at the line, and write nothing") {
  const TemporaryFolder folder;
  const auto refused = [&](const std::string& set, const std::string& message) {
    const Finished run = run_tool(run_quickstart(folder, "--set " + quoted(set)));
    INFO(set);
    CHECK(run.code == 2);
    CHECK_THAT(run.err, Contains(message));
    CHECK_FALSE(fs::exists(folder / "out"));
  };
  refused("prompts.short.tokens=[3, 512]", "512");
  refused("falsifiers.STEP-ERROR.stage=attn_nrom", "attn_norm");
  refused("falsifiers.FINITE.layers=99", "99");
  refused("lanes.f32.numerics=f31", "f31");
  refused("lanes.f32.thraeds=2", "thraeds");
  refused("lanes.f32.device=0", "device");
  refused("sinks.dump.compress=1", "compress");
  refused("model.synthetic=huge", "huge");
}

TEST_CASE("what is absent is untested: exit 3") {
  const TemporaryFolder folder;
  const Finished model = run_tool(run_quickstart(folder, "--set 'model={gguf: /no/such/model.gguf}'"));
  CHECK(model.code == 3);
  CHECK_THAT(model.out, Contains("UNTESTED") && Contains("/no/such/model.gguf"));
  const Finished backend = run_tool(run_quickstart(folder, "--overwrite --set lanes.f32.backend=abacus"));
  CHECK(backend.code == 3);
  CHECK_THAT(backend.out, Contains("abacus"));
}

TEST_CASE("a corrupt model exits 4 and names the file") {
  const TemporaryFolder folder;
  REQUIRE(run_tool("synth " + quoted(folder / "model.gguf") + " --preset tiny --layers 1 --seed 1").code == 0);
  std::string bytes = read_text(folder / "model.gguf");
  const auto run_model = [&](const std::string& content) {
    write_text(folder / "bad.gguf", content);
    return run_tool(run_quickstart(folder, "--overwrite --set 'model={gguf: " + folder / "bad.gguf" + "}'"));
  };
  const std::vector<std::string> corrupt = {"", bytes.substr(0, 100), bytes.substr(0, bytes.size() - 1),
                                            "GGML" + bytes.substr(4)};
  for (const std::string& content : corrupt) {
    const Finished run = run_model(content);
    CHECK(run.code == 4);
    CHECK_THAT(run.err, Contains("bad.gguf"));
  }
}

TEST_CASE("an output folder that is a file is a mistake of the call") {
  const TemporaryFolder folder;
  write_text(folder / "file", "in the way");
  const Finished run = run_tool("run " + quoted(quickstart) + " --out " + quoted(folder / "file"));
  CHECK(run.code == 2);
  CHECK_THAT(run.err, Contains(folder / "file") && Contains("--out"));
  CHECK(read_text(folder / "file") == "in the way");
}

TEST_CASE("a refused plugin exits 4, a missing plugin folder exits 2 or 4, both with their path") {
  const TemporaryFolder folder;
  fs::create_directory(folder / "plugins");
  for (const auto& entry : fs::directory_iterator(MOE_DIAG_PLUGINS))
    fs::copy(entry.path(), fs::path(folder / "plugins") / entry.path().filename());
  write_text(folder / "plugins/moe_diag_sink_npy.so", "not a library");
  const Finished run = run_tool("--plugin-dir " + quoted(folder / "plugins") + " " + run_quickstart(folder));
  CHECK(run.code == 4);
  CHECK_THAT(run.err, Contains("moe_diag_sink_npy.so"));
  const Finished none = run_tool("--plugin-dir " + quoted(folder / "nowhere") + " " + run_quickstart(folder));
  CHECK(none.code != 0);
  CHECK_THAT(none.err + none.out, Contains("nowhere"));
}

TEST_CASE("a run that is killed in the middle of its capture leaves no manifest, and can be replaced") {
  for (int milliseconds : {0, 3, 10, 25}) {
    const TemporaryFolder folder;
    const std::string out = folder / "out", mark = folder / "out/dump/incomplete";
    const pid_t child = fork();
    if (child == 0) {
      const int null = ::open("/dev/null", O_WRONLY);
      ::dup2(null, STDOUT_FILENO);
      ::dup2(null, STDERR_FILENO);
      ::execl(MOE_DIAG_EXE, MOE_DIAG_EXE, "run", quickstart.c_str(), "--set", "model.layers=48", "--set",
              "capture.0.stages=all", "--out", out.c_str(), nullptr);
      ::_exit(127);
    }
    int status = 0;
    while (!fs::exists(mark) && ::waitpid(child, &status, WNOHANG) == 0)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    REQUIRE(fs::exists(mark));
    std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
    ::kill(child, SIGKILL);
    ::waitpid(child, &status, 0);
    REQUIRE(WIFSIGNALED(status));
    CHECK_FALSE(fs::exists(out + "/dump/manifest.json"));
    CHECK_FALSE(fs::exists(out + "/verdict.json"));
    CHECK(run_tool("run " + quoted(quickstart) + " --out " + quoted(out)).code == 2);
    CHECK(run_tool("run " + quoted(quickstart) + " --overwrite --out " + quoted(out)).code == 0);
    CHECK(fs::exists(out + "/dump/manifest.json"));
  }
}

TEST_CASE("a capture of what is absent exits 3 and says so") {
  const TemporaryFolder folder;
  write_text(folder / "capture.yaml", R"(
metadata: {id: capture, version: 1.0.0, description: a capture alone}
model: {synthetic: tiny, seed: 7}
prompts: [{id: short, tokens: [3, 141, 59]}]
lanes: {here: {backend: cpu, numerics: f32}}
capture:
  - {stages: moe_ffn_out, positions: last, to: [dump, sums]}
  - {stages: ["moe_*"], layers: 0, positions: [0, last], to: [dump, sums]}
sinks: {dump: {sink: npy, dir: dump}, sums: {sink: stats, file: stats.csv}}
)");
  const std::string run = "run " + quoted(folder / "capture.yaml") + " --out " + quoted(folder / "out");
  const Finished absent = run_tool(run + " --set lanes.here.backend=abacus");
  CHECK(absent.code == 3);
  CHECK_THAT(absent.out, Contains("not made") && Contains("abacus"));
  CHECK(run_tool(run + " --overwrite --set 'model={gguf: /no/such.gguf}'").code == 3);

  // Two captures of one site are one, in the order of positions.
  const Finished whole = run_tool(run + " --overwrite");
  CHECK(whole.code == 0);
  CHECK_THAT(read_text(folder / "out/stats.csv"), Contains("short,here,moe_ffn_out,0,f32,2,512,"));
}

TEST_CASE("a verdict is not replaced unasked, nor written over by a sink, and survives a reader that goes away") {
  const TemporaryFolder folder;
  const std::string precision = "run " + quoted(std::string(MOE_DIAG_SOURCE_DIR) + "/contracts/precision.yaml");
  REQUIRE(run_tool(precision + " --out " + quoted(folder / "out")).code == 0);
  const Finished again = run_tool(precision + " --out " + quoted(folder / "out"));
  CHECK(again.code == 2);
  CHECK_THAT(again.err, Contains("--overwrite"));
  const Finished name = run_tool(run_quickstart(folder, "--overwrite --set sinks.summary.file=verdict.json"));
  CHECK(name.code == 2);
  CHECK_THAT(name.err, Contains("verdict.json"));
  CHECK(run_tool(precision + " --out ''").code == 2);
  CHECK(run_tool(precision + " --json /no/such/folder/v.json --out " + quoted(folder / "other")).code == 2);

  run_command(quoted(MOE_DIAG_EXE) + " " + precision + " --out " + quoted(folder / "piped") + " | true");
  CHECK(fs::exists(folder / "piped/verdict.json"));
  CHECK(run_command(quoted(MOE_DIAG_EXE) + " stages > /dev/full").code == 4);
}

TEST_CASE("a model is mapped, not copied: looking into it takes a fraction of its memory") {
  const TemporaryFolder folder;
  REQUIRE(run_tool("synth " + quoted(folder / "small.gguf") + " --preset tiny --layers 1 --quant f16").code == 0);
  REQUIRE(run_tool("synth " + quoted(folder / "large.gguf") + " --preset tiny --layers 48 --quant f16").code == 0);
  REQUIRE(fs::file_size(folder / "large.gguf") > fs::file_size(folder / "small.gguf") + 190'000'000);
  const std::int64_t small = kilobytes_to_inspect(folder / "small.gguf");
  CHECK(kilobytes_to_inspect(folder / "large.gguf") < small + 80'000);
}

TEST_CASE("check, stages, plugins, inspect and synth do what they say") {
  const Finished check = run_tool("check " + quoted(quickstart));
  CHECK(check.code == 0);
  CHECK_THAT(check.out, Contains("right"));
  CHECK(run_tool("check " + quoted(quickstart) + " --set falsifiers.FINITE.layers=4").code == 2);

  const Finished stages = run_tool("stages");
  CHECK(stages.code == 0);
  CHECK_THAT(stages.out, Contains("moe_router_indices") && Contains("layer_output"));
  CHECK(nlohmann::json::parse(run_tool("stages --json").out)["stages"].size() == 26);

  const Finished plugins = run_tool("plugins");
  CHECK(plugins.code == 0);
  CHECK_THAT(plugins.out, Contains("cpu") && Contains("npy") && Contains("stats"));

  const TemporaryFolder folder;
  REQUIRE(run_tool("synth " + quoted(folder / "m.gguf") + " --preset tiny --seed 3").code == 0);
  const Finished inspect = run_tool("inspect " + quoted(folder / "m.gguf"));
  CHECK(inspect.code == 0);
  CHECK_THAT(inspect.out, Contains("ffn_down_exps") && Contains("Q6_K"));
  CHECK(run_tool("synth " + quoted(folder / "m.gguf") + " --preset tiny --seed 3").code != 0);
  CHECK(run_tool("inspect /no/such/file.gguf").code == 2);
  CHECK_THAT(run_tool("--version").out, Contains("moe-diag"));
}

}  // namespace moe_diag
