// SPDX-License-Identifier: MIT
// What a CI job asks of the runner: several contracts, some of their falsifiers, what may be absent, and one exit code.
#include <filesystem>

#include "tests/support/catch.hpp"
#include "tests/support/gate.hpp"

namespace moe_diag {
namespace {

namespace fs = std::filesystem;
using Catch::Matchers::Contains;

// A folder with contracts a.yaml, b.yaml, ... and what the runner makes of them.
struct Job {
  TemporaryFolder folder;

  void write(const std::string& name, const std::string& text) const { write_text(folder / name, text); }
  Finished run(const std::string& arguments) const {
    return run_command("cd " + quoted(folder.str()) + " && " + tool() + " run --out out " + arguments);
  }
  nlohmann::json verdict(const std::string& id) const { return read_json(folder / ("out/" + id + "/verdict.json")); }
};

}  // namespace

TEST_CASE("several contracts are each run and reported, and one exit code speaks for all") {
  const Job job;
  job.write("a.yaml", gate_text("a", held_claim));
  job.write("b.yaml", gate_text("b", held_claim + false_claim));
  job.write("c.yaml", gate_text("c", held_claim + far_claim));
  const Finished run = job.run("a.yaml b.yaml c.yaml --json all.json");
  CHECK(run.code == 1);
  CHECK_THAT(run.out, Contains("HELD: a 1.0.0") && Contains("FALSIFIED: b 1.0.0") && Contains("UNTESTED: c 1.0.0"));
  CHECK_THAT(run.out,
             Catch::Matchers::EndsWith("\nSUMMARY: 3 contracts: 1 FALSIFIED, 1 HELD, 1 UNTESTED; exit code 1\n"));
  CHECK(job.verdict("a")["outcomes"]["held"] == 1);
  CHECK(job.verdict("b")["outcomes"]["falsified"] == 1);
  const auto all = read_json(job.folder / "all.json");
  REQUIRE(all["verdicts"].size() == 3);
  CHECK(all["verdicts"][1]["contract"]["id"] == "b");
  CHECK(all["verdicts"][2]["outcomes"]["untested"] == 1);
}

TEST_CASE("a mistake in any contract keeps all from being run, and all mistakes are told") {
  const Job job;
  job.write("a.yaml", gate_text("a", held_claim));
  job.write("same.yaml", gate_text("a", held_claim));
  std::string odd = gate_text("b", held_claim);
  job.write("odd.yaml", odd + "    colour: red\n");
  job.write(
      "layer.yaml",
      gate_text("c", "  - {id: X, claim: x, lane: free, stage: attn_out, layers: 99, metric: rel_l2, at_most: 1}\n"));
  const Finished same = job.run("a.yaml same.yaml");
  CHECK(same.code == 2);
  CHECK_THAT(same.err, Contains("same.yaml") && Contains("'a'") && Contains("a.yaml"));
  const Finished odd_run = job.run("a.yaml odd.yaml missing.yaml");
  CHECK(odd_run.code == 2);
  CHECK_THAT(odd_run.err, Contains("odd.yaml:") && Contains("missing.yaml"));
  // Only the model shows this one.
  const Finished layer = job.run("a.yaml layer.yaml");
  CHECK(layer.code == 2);
  CHECK_THAT(layer.err, Contains("layer.yaml:") && Contains("99"));
  CHECK_FALSE(fs::exists(job.folder / "out"));
}

TEST_CASE("what fails in one contract does not keep the next from being run, and counts first") {
  const Job job;
  write_text(job.folder / "bad.gguf", "GGUF, but not really");
  job.write("a.yaml", gate_text("a", held_claim, "", "{gguf: bad.gguf}"));
  job.write("b.yaml", gate_text("b", false_claim));
  const Finished run = job.run("a.yaml b.yaml --junit junit.xml");
  CHECK(run.code == 4);
  CHECK_THAT(run.err, Contains("a: ") && Contains("bad.gguf"));
  CHECK_THAT(run.out, Contains("FALSIFIED: b") && Contains("1 FAILED, 1 FALSIFIED; exit code 4"));
  CHECK_THAT(job.verdict("a")["failure"].get<std::string>(), Contains("bad.gguf"));
  CHECK(job.verdict("a")["falsifiers"][0]["outcome"] == "untested");
  CHECK(junit_breaches(job.folder / "junit.xml").empty());
  CHECK_THAT(read_text(job.folder / "junit.xml"),
             Contains("errors=\"2\"") && Contains("bad.gguf") && Contains("name=\"(run)\""));
}

TEST_CASE("overrides and faults are for every contract, and must fit every one") {
  const Job job;
  job.write("a.yaml", gate_text("a", held_claim));
  job.write("b.yaml",
            gate_text("b", held_claim + "  - {id: MORE, claim: m, lane: step, stage: lm_head, metric: rel_l2, "
                                        "at_most: 1e-3}\n"));
  CHECK(job.run("a.yaml b.yaml --inject '{inject: nan, stage: lm_head, lane: free}'").code == 1);
  CHECK(job.verdict("a")["planted"].size() == 1);
  CHECK(job.verdict("b")["planted"].size() == 1);
  const Finished layer =
      job.run("a.yaml b.yaml --overwrite --inject '{inject: nan, stage: attn_out, layer: 9, lane: free}'");
  CHECK(layer.code == 2);
  CHECK_THAT(layer.err, Contains("a.yaml: --inject") && Contains("b.yaml: --inject"));
  const Finished set = job.run("a.yaml b.yaml --overwrite --set falsifiers.MORE.at_most=1");
  CHECK(set.code == 2);
  CHECK_THAT(set.err, Contains("a.yaml") && Contains("MORE"));
}

TEST_CASE("only what is selected is planned, judged and reported") {
  const Job job;
  job.write("a.yaml", gate_text("a", held_claim + false_claim + far_claim + fed_claim));
  const Finished glob = job.run("a.yaml --only 'HOL*'");
  CHECK(glob.code == 0);
  CHECK_THAT(glob.out, Contains("1 held, 0 falsified, 0 vacuous, 0 untested; 1 of 4 falsifiers selected"));
  const auto verdict = read_json(job.folder / "out/verdict.json");
  CHECK(verdict["falsifiers"].size() == 1);
  CHECK(verdict["contract"]["falsifiers"] == 4);
  CHECK(verdict["falsifiers"][0]["tags"] == nlohmann::json({"quick", "logits"}));

  CHECK(job.run("a.yaml --overwrite --only tag:logits").code == 0);
  const Finished quick = job.run("a.yaml --overwrite --only 'tag:q*'");
  CHECK(quick.code == 3);
  CHECK_THAT(quick.out, Contains("2 of 4 falsifiers selected") && !Contains("FAILS"));
  CHECK(job.run("a.yaml --overwrite --only HOLDS --only FAILS").code == 1);

  const Finished none = job.run("a.yaml --overwrite --only HOLD");
  CHECK(none.code == 2);
  CHECK_THAT(none.err, Contains("HOLDS"));
  CHECK_THAT(job.run("a.yaml --overwrite --only tag:quik").err, Contains("did you mean 'quick'"));
  CHECK(job.run("a.yaml --overwrite --only lane:free").code == 2);
}

TEST_CASE("a contract of which nothing is selected is left out") {
  const Job job;
  job.write("a.yaml", gate_text("a", held_claim));
  job.write("b.yaml", gate_text("b", false_claim));
  const Finished run = job.run("a.yaml b.yaml --only HOLDS --json all.json");
  CHECK(run.code == 0);
  CHECK_THAT(run.out, Contains("2 contracts: 1 HELD, 1 not selected; exit code 0"));
  CHECK_FALSE(fs::exists(job.folder / "out/b"));
  CHECK(read_json(job.folder / "all.json")["verdicts"].size() == 1);
}

TEST_CASE("what may be untested does not make exit 3") {
  const Job job;
  const std::string captures =
      "capture: [{stages: lm_head, lanes: [truth, far], to: dump}]\nsinks: {dump: {sink: stats, "
      "file: dump.csv}}\n";
  job.write("a.yaml", gate_text("a", held_claim + far_claim + fed_claim, captures));
  CHECK(job.run("a.yaml").code == 3);
  const Finished lane = job.run("a.yaml --overwrite --allow-untested lane:far");
  CHECK(lane.code == 0);
  CHECK_THAT(lane.out, Contains("HELD: a 1.0.0: 1 held, 0 falsified, 0 vacuous, 2 untested (2 allowed)") &&
                           Contains("allowed: lane 'far' is absent"));
  const auto verdict = read_json(job.folder / "out/verdict.json");
  CHECK(verdict["falsifiers"][2]["allowed"] == true);
  CHECK(verdict["outcomes"]["untested_allowed"] == 2);
  CHECK(verdict["captured_nothing"].empty());
  CHECK(verdict["captured_nothing_allowed"].size() == 1);

  // Allowing the fed lane does not allow the one that feeds it, nor the capture of that.
  const Finished fed = job.run("a.yaml --overwrite --allow-untested lane:fed");
  CHECK(fed.code == 3);
  CHECK(read_json(job.folder / "out/verdict.json")["falsifiers"][1]["allowed"] == false);
  CHECK(read_json(job.folder / "out/verdict.json")["falsifiers"][2]["allowed"] == true);
  CHECK(job.run("a.yaml --overwrite --allow-untested FAR --allow-untested tag:quick").code == 3);
  CHECK(job.run("a.yaml --overwrite --only HOLDS --allow-untested lane:far").code == 0);

  const Finished none = job.run("a.yaml --overwrite --allow-untested lane:fer");
  CHECK(none.code == 2);
  CHECK_THAT(none.err, Contains("--allow-untested") && Contains("did you mean 'far'"));
  CHECK(job.run("a.yaml --overwrite --allow-untested FRA").code == 2);

  const Finished model = job.run("a.yaml --overwrite --set 'model={gguf: no.gguf}' --allow-untested '*'");
  CHECK(model.code == 0);
  CHECK_THAT(model.out, Contains("UNTESTED, AS ALLOWED"));
  CHECK(job.run("a.yaml --overwrite --set 'model={gguf: no.gguf}' --allow-untested 'lane:*'").code == 3);
}

TEST_CASE("a falsifier that is falsified is never allowed") {
  const Job job;
  job.write("a.yaml", gate_text("a", false_claim + blind_claim));
  CHECK(job.run("a.yaml --controls --allow-untested '*'").code == 1);
}

TEST_CASE("every exit code is reached, and the first of 2, 4, 1, 3, 0 applies") {
  const Job job;
  write_text(job.folder / "bad.gguf", "not a model");
  job.write("held.yaml", gate_text("held", held_claim));
  job.write("false.yaml", gate_text("false", false_claim));
  job.write("vacuous.yaml", gate_text("vacuous", blind_claim));
  job.write("untested.yaml", gate_text("untested", far_claim));
  job.write("corrupt.yaml", gate_text("corrupt", held_claim, "", "{gguf: bad.gguf}"));
  job.write("wrong.yaml", "metadata: {id: wrong}\n");
  const auto code = [&](const std::string& contracts) { return job.run("--overwrite --controls " + contracts).code; };
  CHECK(code("held.yaml") == 0);
  CHECK(code("false.yaml") == 1);
  CHECK(code("vacuous.yaml") == 1);
  CHECK(code("wrong.yaml") == 2);
  CHECK(code("untested.yaml") == 3);
  CHECK(code("corrupt.yaml") == 4);
  CHECK(code("held.yaml untested.yaml") == 3);
  CHECK(code("untested.yaml vacuous.yaml held.yaml") == 1);
  CHECK(code("false.yaml corrupt.yaml untested.yaml") == 4);
  CHECK(code("corrupt.yaml wrong.yaml false.yaml") == 2);
}

TEST_CASE("capture feeds the sinks and judges nothing") {
  const Job job;
  const std::string captures =
      "capture: [{stages: lm_head, lanes: [truth, free], to: dump}]\nsinks: {dump: {sink: npy, "
      "dir: dump}}\n";
  job.write("a.yaml", gate_text("a", false_claim, captures));
  const std::string command = "cd " + quoted(job.folder.str()) + " && " + tool() + " capture a.yaml --out out ";
  const Finished whole = run_command(command);
  CHECK(whole.code == 0);
  CHECK_THAT(whole.out,
             Contains("CAPTURED: a 1.0.0: 1 of 1 sinks complete; falsifiers in the contract, not judged: 1"));
  CHECK(fs::exists(job.folder / "out/dump/manifest.json"));
  CHECK_FALSE(fs::exists(job.folder / "out/verdict.json"));
  CHECK(run_command(command).code == 2);
  CHECK(run_command(command + "--overwrite --set capture.0.lanes=all").code == 3);
  CHECK(run_command(command + "--overwrite --set 'model={gguf: no.gguf}'").code == 3);
  const Finished evidence = run_command(command + "--overwrite --set capture.0.when=falsified");
  CHECK(evidence.code == 2);
  CHECK_THAT(evidence.err, Contains("a.yaml"));
}

TEST_CASE("plan tells the samples, bytes and stops of the run to come, and names what is absent") {
  const Job job;
  const std::string captures =
      "capture:\n  - {stages: [\"moe_*\", attn_scores], positions: [0, last], lanes: [truth, free, "
      "far], to: dump}\n  - {stages: moe_ffn_out, lanes: free, to: dump}\n  - {stages: all, to: "
      "more, when: falsified}\n"
      "sinks: {dump: {sink: npy, dir: dump}, more: {sink: npy, dir: more}}\n";
  job.write("a.yaml",
            gate_text("a",
                      held_claim + far_claim +
                          "  - {id: STEP, claim: s, lane: step, stage: all, metric: rel_l2, at_most: 1}\n"
                          "  - {id: SUM, claim: s, lane: step, stage: moe_router_weights, layers: 1.., metric: "
                          "router_sum_error, at_most: 1, positions: last}\n",
                      captures));
  const std::string command = "cd " + quoted(job.folder.str()) + " && " + tool() + " plan a.yaml ";
  const Finished text = run_command(command);
  CHECK(text.code == 0);
  CHECK_THAT(text.out, Contains("PLAN: a 1.0.0: 4 falsifiers") && Contains("would be untested: lane 'far' is absent") &&
                           Contains("about") && Contains("nowhere"));
  const auto plan = nlohmann::json::parse(run_command(command + "--json").out);
  CHECK_FALSE(fs::exists(job.folder / "out"));

  REQUIRE(job.run("a.yaml").code == 3);
  const auto verdict = read_json(job.folder / "out/verdict.json");
  for (std::size_t f = 0; f < 4; ++f) {
    INFO(plan["falsifiers"][f]["id"]);
    if (plan["falsifiers"][f]["absent_lane"].is_null())
      CHECK(plan["falsifiers"][f]["samples"] == verdict["falsifiers"][f]["samples"]);
  }
  CHECK(plan["falsifiers"][1]["absent_lane"] == "far");
  std::uint64_t bytes = 0;
  int tensors = 0;
  for (const auto& entry : fs::recursive_directory_iterator(job.folder / "out/dump"))
    if (entry.path().extension() == ".npy") {
      const std::string file = read_text(entry.path());
      const auto low = static_cast<unsigned char>(file[8]), high = static_cast<unsigned char>(file[9]);
      bytes += file.size() - 10 - low - 256U * high;
      ++tensors;
    }
  CHECK(plan["sinks"][0]["bytes"] == bytes);
  CHECK(plan["sinks"][0]["tensors"] == tensors);
  CHECK(plan["evidence"][0]["bytes"] > 0);
  CHECK(plan["memory"]["fits"] == true);
  CHECK(plan["memory"]["host_bytes"] > 0);
  CHECK(plan["memory"]["kept_bytes"] > 0);
  CHECK(plan["seconds"]["total"] > 0);
  CHECK(plan["prompts"][0]["stops"] == 4 * 22 + 3);

  const auto few = nlohmann::json::parse(run_command(command + "--json --only HOLDS").out);
  CHECK(few["falsifiers"].size() == 1);
  const Finished absent = run_command(command + "--set 'model={gguf: no.gguf}'");
  CHECK(absent.code == 0);
  CHECK_THAT(absent.out, Contains("no.gguf") && Contains("untested"));
  CHECK(run_command(command + "--set falsifiers.STEP.layers=9").code == 2);
}

}  // namespace moe_diag
