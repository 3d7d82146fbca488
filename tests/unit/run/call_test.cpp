// SPDX-License-Identifier: MIT
// How the runner is called: what is misspelt, what comes by way of a pipe, what a report proposes next.
#include <sys/stat.h>

#include <chrono>
#include <filesystem>
#include <sstream>

#include "core/report/next_steps.hpp"
#include "core/verdict/allow.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/gate.hpp"

namespace moe_diag {
namespace {

namespace fs = std::filesystem;
using Catch::Matchers::Contains;

Finished in(const TemporaryFolder& folder, const std::string& command) {
  return run_command("cd " + quoted(folder.str()) + " && " + command);
}

std::size_t times(const std::string& text, const std::string& part) {
  std::size_t count = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

// What stands behind the first "next" of a report, up to the remark.
std::string proposed(const std::string& report) {
  const std::string mark = "next       ";
  const std::size_t at = report.find(mark);
  REQUIRE(at != std::string::npos);
  const std::size_t from = at + mark.size();
  return report.substr(from, report.find("    ", from) - from);
}

}  // namespace

TEST_CASE("a misspelt command or option names the nearest") {
  const auto refused = [](const std::string& arguments, const std::string& says) {
    const Finished finished = run_tool(arguments);
    INFO(arguments << ": " << finished.err);
    CHECK(finished.code == 2);
    CHECK_THAT(finished.err, Contains(says));
    CHECK(times(finished.err, "\n") == 1);
  };
  refused("rnu contract.yaml", "unknown command 'rnu', did you mean 'run'?");
  refused("-v --plugin-dir /tmp chek", "unknown command 'chek', did you mean 'check'?");
  refused("help rnu", "did you mean 'run'?");
  refused("run a.yaml --jsn x.json", "unknown option '--jsn', did you mean '--json'?");
  refused("run a.yaml --allow '*'", "unknown option '--allow', did you mean '--allow-untested'?");
  refused("run a.yaml --junt=x", "did you mean '--junit'?");
  refused("plan --thread 2", "did you mean '--threads'?");
  refused("run a.yaml --plugin-dr x", "did you mean '--plugin-dir'?");
  refused("--verson", "did you mean '--version'?");
}

TEST_CASE("help and version are commands, too") {
  CHECK(run_tool("version").out == run_tool("--version").out);
  CHECK(run_tool("-V").out == run_tool("--version").out);
  CHECK(run_tool("help").out == run_tool("--help").out);
  CHECK(run_tool("help run").out == run_tool("run --help").out);
  CHECK(run_tool("help run").code == 0);
  CHECK_THAT(run_tool("run --help").out, Contains("-v,--verbose"));
}

TEST_CASE("a contract may come by way of a pipe, and one that nobody writes to does not hang") {
  const TemporaryFolder folder;
  write_text(folder / "c.yaml", contract_text(held_claim));
  CHECK(in(folder, tool() + " check - < c.yaml").code == 0);
  CHECK(in(folder, "cat c.yaml | " + tool() + " check -").code == 0);
  const Finished slow = in(folder, "(sleep 0.3; cat c.yaml) | " + tool() + " run - --out out");
  CHECK(slow.code == 0);
  CHECK(fs::exists(folder / "out/verdict.json"));
  CHECK(in(folder, "bash -c " + quoted(tool() + " check <(cat c.yaml)")).code == 0);
  REQUIRE(::mkfifo((folder / "pipe").c_str(), 0600) == 0);
  const Finished nobody = in(folder, "timeout 60 " + std::string("env ") + tool() + " check pipe");
  CHECK(nobody.code == 2);
  CHECK_THAT(nobody.err, Contains("pipe: cannot read the contract: it is no file, and nobody writes to it"));
  CHECK_THAT(in(folder, tool() + " check .").err, Contains("it is a folder"));
}

TEST_CASE("check counts in plain words, and a threshold that is misspelt is told once") {
  const TemporaryFolder folder;
  write_text(folder / "c.yaml", contract_text(held_claim));
  CHECK_THAT(in(folder, tool() + " check c.yaml").out, Contains("right: 1 prompt, 3 lanes, 0 captures, 1 falsifier\n"));
  std::string text = contract_text(held_claim);
  text.replace(text.find("equals: 0"), 9, "equals_: 0");
  write_text(folder / "c.yaml", text);
  const Finished typo = in(folder, tool() + " check c.yaml");
  CHECK_THAT(typo.err, Contains("did you mean 'equals'?") && !Contains("missing"));
}

TEST_CASE("a step that is wrong ends with the command that makes a case of it, which can be typed") {
  const TemporaryFolder folder;
  write_text(folder / "c.yaml", contract_text("  - {id: ALL, claim: c, lane: step, stage: all, metric: rel_l2, "
                                              "at_most: 1e-5}\n"));
  const Finished run = in(folder, tool() +
                                      " run c.yaml --out 'the out' --inject "
                                      "'{inject: scale, stage: moe_expert_out, layer: 2, lane: step}'");
  REQUIRE(run.code == 1);
  CHECK_THAT(run.out, !Contains("would have held"));
  const std::string next = proposed(run.out);
  CHECK(next == "moe-diag repro 'the out/verdict.json' --out case");
  const Finished repro = in(folder, tool() + next.substr(std::string("moe-diag").size()));
  REQUIRE(repro.code == 0);
  const std::string mark = "again      moe-diag";
  const std::size_t at = repro.out.find(mark);
  REQUIRE(at != std::string::npos);
  const std::string again = tool() + repro.out.substr(at + mark.size());
  CHECK(in(folder, again).code == 1);
  CHECK(in(folder, again).code == 1);
  CHECK(in(folder, "cd case && " + tool() + " run contract.yaml --out out --overwrite").code == 1);
}

TEST_CASE("what is within its numerics ends with the threshold, and with no case") {
  const TemporaryFolder folder;
  write_text(folder / "c.yaml", contract_text(false_claim));
  const Finished run = in(folder, tool() + " run c.yaml");
  REQUIRE(run.code == 1);
  CHECK_THAT(run.out, Contains("threshold  that would have held") && !Contains("repro"));
}

TEST_CASE("what is absent ends with the pattern that allows it") {
  const TemporaryFolder folder;
  const std::string captures =
      "capture: [{stages: lm_head, lanes: [truth, far], to: dump}]\nsinks: {dump: {sink: stats, file: dump.csv}}\n";
  write_text(folder / "a.yaml", gate_text("a", held_claim + fed_claim, captures));
  const Finished run = in(folder, tool() + " run a.yaml");
  REQUIRE(run.code == 3);
  CHECK(times(run.out, "next  ") == 1);
  CHECK(proposed(run.out) == "--allow-untested lane:far");
  const Finished allowed = in(folder, tool() + " run a.yaml --overwrite " + proposed(run.out));
  CHECK(allowed.code == 0);
  CHECK_THAT(allowed.out, !Contains("next  "));

  const Finished model = in(folder, tool() + " run a.yaml --overwrite --set 'model={gguf: no.gguf}'");
  REQUIRE(model.code == 3);
  CHECK(in(folder, tool() + " run a.yaml --overwrite --set 'model={gguf: no.gguf}' " + proposed(model.out)).code == 0);
  CHECK_THAT(in(folder, tool() + " run a.yaml --overwrite --allow-untested far").err,
             Contains("'far' is no falsifier: write 'lane:far' for the lane"));
  CHECK_THAT(in(folder, tool() + " run a.yaml --overwrite --only 'qui*'").err,
             Contains("write 'tag:qui*' for the tag"));
}

TEST_CASE("'*' allows whatever may be missing, and nothing judged is not held") {
  const TemporaryFolder folder;
  const std::string captures =
      "capture: [{stages: lm_head, lanes: [truth, far], to: dump}]\nsinks: {dump: {sink: stats, file: dump.csv}}\n";
  write_text(folder / "a.yaml", gate_text("a", far_claim, captures));
  const Finished run = in(folder, tool() + " run a.yaml --allow-untested '*'");
  CHECK(run.code == 0);
  CHECK_THAT(run.out, Contains("UNTESTED, AS ALLOWED: a"));
  // A name that nobody has is no absence.
  CHECK(in(folder, tool() + " run a.yaml --overwrite --allow-untested '*' --set lanes.far.backend=cpuu").code == 2);
}

TEST_CASE("the folder of a contract is the same for one and for several, where --out says so") {
  const TemporaryFolder folder;
  write_text(folder / "a.yaml", gate_text("a", held_claim));
  write_text(folder / "b.yaml", gate_text("b", held_claim));
  REQUIRE(in(folder, tool() + " run a.yaml --out 'one/{id}'").code == 0);
  REQUIRE(in(folder, tool() + " run a.yaml b.yaml --out 'two/{id}'").code == 0);
  REQUIRE(in(folder, tool() + " run a.yaml").code == 0);
  for (const std::string file :
       {"one/a/verdict.json", "two/a/verdict.json", "two/b/verdict.json", "moe-diag-out/a/verdict.json"})
    CHECK(fs::exists(folder / file));
}

TEST_CASE("claims without a control are counted") {
  const TemporaryFolder folder;
  write_text(folder / "a.yaml", gate_text("a", held_claim + blind_claim));
  CHECK_THAT(in(folder, tool() + " run a.yaml --controls").out,
             Contains("controls   1 of 2 claims that were judged has no control"));
}

}  // namespace moe_diag
