// SPDX-License-Identifier: MIT
// The command lines of docs/ci.md do what the page says.
#include <filesystem>
#include <sstream>
#include <string>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/support/gate.hpp"

namespace moe_diag {
namespace {

namespace fs = std::filesystem;

// Lines of fenced blocks that call the runner, in the page's order.
std::vector<std::string> command_lines(const std::string& page) {
  std::vector<std::string> commands;
  std::istringstream in(page);
  bool in_block = false;
  for (std::string line; std::getline(in, line);) {
    if (line.rfind("```", 0) == 0) in_block = !in_block;
    const std::size_t at = line.find_first_not_of(' ');
    if (in_block && at != std::string::npos && line.compare(at, 9, "moe-diag ") == 0)
      commands.push_back(line.substr(at));
  }
  return commands;
}

std::string page() { return read_text(MOE_DIAG_SOURCE_DIR "/docs/ci.md"); }

}  // namespace

TEST_CASE("the command lines of the page for CI run as they stand, in a repository like the one it is about") {
  const TemporaryFolder folder;
  fs::create_directories(folder / "contracts");
  fs::create_directories(folder / "bin");
  fs::create_symlink(MOE_DIAG_EXE, folder / "bin/moe-diag");
  fs::copy(std::string(MOE_DIAG_SOURCE_DIR) + "/contracts/quickstart.yaml", folder / "contracts/quickstart.yaml");
  std::string gpu = gate_text(
      "gpu", "  - {id: GPU, claim: g, lane: cuda, stage: lm_head, metric: rel_l2, at_most: 1e-3}\n" + held_claim);
  gpu.insert(gpu.find("  far:"), "  cuda: {backend: cuda, numerics: f32}\n");
  write_text(folder / "contracts/gpu.yaml", gpu);

  const std::vector<std::string> commands = command_lines(page());
  REQUIRE(commands.size() >= 3);
  for (const std::string& command : commands) {
    const Finished run = run_command("cd " + quoted(folder.str()) + " && export PATH=" + quoted(folder / "bin") +
                                     ":$PATH MOE_DIAG_PLUGIN_PATH=" + quoted(MOE_DIAG_PLUGINS ":" MOE_DIAG_NOTES) +
                                     " GITHUB_STEP_SUMMARY=" + quoted(folder / "summary.md") + " && " + command);
    INFO(command << "\n" << run.out << run.err);
    CHECK(run.code == 0);
  }
  CHECK(junit_breaches(folder / "out.xml") == "");
  CHECK(fs::exists(folder / "out/quickstart/verdict.json"));
  CHECK(fs::exists(folder / "out/gpu/verdict.json"));
  CHECK_THAT(read_text(folder / "summary.md"), Catch::Matchers::Contains("HELD: quickstart"));
}

TEST_CASE("the page's snippets for other servers judge as its workflow does") {
  const std::string text = page(), start = "moe-diag run contracts/*.yaml";
  std::vector<std::string> calls;
  for (std::size_t at = text.find(start); at != std::string::npos; at = text.find(start, at + 1)) {
    std::string call = text.substr(at, text.find_first_of("\n\"", at) - at);
    if (const std::size_t github = call.find(" --github"); github != std::string::npos) call.erase(github, 9);
    calls.push_back(call);
  }
  REQUIRE(calls.size() == 3);
  CHECK(calls[1] == calls[0]);
  CHECK(calls[2] == calls[0]);
}

TEST_CASE("the workflow on the page for CI is YAML, and uploads what its commands write") {
  const TemporaryFolder folder;
  const std::string text = page(), mark = "```yml\n";
  const std::size_t at = text.find(mark) + mark.size();
  write_text(folder / "workflow.yml", text.substr(at, text.find("```", at) - at));
  const std::string script =
      "import sys, yaml; w = yaml.safe_load(open(sys.argv[1])); steps = w['jobs']['contracts']['steps']; "
      "judge = next(s for s in steps if s['name'] == 'Judge')['run']; "
      "kept = steps[-1]['with']['path'].split(); assert steps[-1]['if'] == 'always()'; "
      "assert all(k in judge.replace('/{id}', '').replace(\"'\", '').split() for k in kept), (kept, judge); assert "
      "all('uses' in s or 'run' in s for s in "
      "steps)";
  const Finished check =
      run_command(quoted(MOE_DIAG_PYTHON) + " -c " + quoted(script) + " " + quoted(folder / "workflow.yml"));
  CHECK(check.code == 0);
  CHECK(check.err == "");
}

}  // namespace moe_diag
