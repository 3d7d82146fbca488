// SPDX-License-Identifier: MIT
// What is written for CI servers: JUnit, JSON and GitHub's annotations, each held against what its readers take.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <set>
#include <sstream>
#include <vector>

#include "core/report/github.hpp"
#include "core/report/junit.hpp"
#include "core/report/report.hpp"
#include "core/report/text.hpp"
#include "core/verdict/allow.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/gate.hpp"

namespace moe_diag {
namespace {

using Catch::Matchers::Contains;
using Catch::Matchers::StartsWith;

// Every outcome there is.
Verdict all_outcomes() {
  RunOptions options;
  options.controls = true;
  const std::string tripped =
      "  - {id: PROVEN, claim: c, lane: free, stage: lm_head, metric: nonfinite, equals: 0, controls: [{inject: nan, "
      "stage: "
      "lm_head}]}\n";
  // BLIND is vacuous because its control makes no difference that it can see.
  Verdict verdict =
      judge_text(gate_text("every", tripped + false_claim + blind_claim + far_claim + fed_claim), options);
  allow_untested(verdict, {Pattern::parse("FED")});
  return verdict;
}

std::string written(const TemporaryFolder& folder, const std::string& name, const std::string& text) {
  write_text(folder / name, text);
  return folder / name;
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

// All keys of all objects within.
std::set<std::string> keys_of(const nlohmann::json& value) {
  std::set<std::string> keys;
  if (!value.is_structured()) return keys;
  for (const auto& [key, inner] : value.items()) {
    if (value.is_object()) keys.insert(key);
    keys.merge(keys_of(inner));
  }
  return keys;
}

// A verdict with as many falsified falsifiers; the contract lives as long as it.
struct Many {
  explicit Many(int count, const std::string& claim = "c") {
    contract.path = "a.yaml";
    contract.metadata = {"many", "1", "d", {}};
    for (int i = 0; i < count; ++i) {
      FalsifierSpec spec;
      spec.id = "F" + std::to_string(i);
      spec.claim = claim;
      spec.where = {10 + i, 3};
      contract.falsifiers.push_back(spec);
    }
    verdict.contract = &contract;
    for (const FalsifierSpec& spec : contract.falsifiers) {
      Judgement j;
      j.spec = &spec;
      j.outcome = Outcome::vacuous;
      j.reason = "because";
      verdict.judgements.push_back(j);
    }
  }
  Contract contract;
  Verdict verdict;
};

}  // namespace

TEST_CASE("JUnit follows the schema that CI servers publish, and says of every outcome what it is") {
  const TemporaryFolder folder;
  const std::vector<Verdict> verdicts = {all_outcomes(), all_outcomes()};
  const std::string xml = junit_report(verdicts, "1.2.3");
  CHECK(junit_breaches(written(folder, "junit.xml", xml)) == "");
  CHECK_THAT(xml, Contains("<testsuites name=\"moe-diag\" tests=\"10\" failures=\"4\" errors=\"2\""));
  CHECK_THAT(xml, Contains("tests=\"5\" failures=\"2\" errors=\"1\"") && Contains("skipped=\"1\""));
  CHECK_THAT(xml, Contains("<testcase classname=\"every\" name=\"FAILS\" time=\""));
  CHECK_THAT(xml, Contains("<failure type=\"falsified\" message=\"prompt short, position 0, lm_head: rel_l2 = ") &&
                      Contains("  where      prompt short, position 0, lm_head") && Contains("threshold  that would"));
  CHECK_THAT(xml, Contains("<failure type=\"vacuous\"") && Contains("<error type=\"untested\"") &&
                      Contains("<skipped type=\"untested\""));
  CHECK_THAT(xml, Contains("<system-out>control nan at lm_head") && Contains("NOT TRIPPED"));
  CHECK_THAT(xml, Contains("name=\"model\" value=\"synthetic: tiny") &&
                      Contains("name=\"moe_diag_version\" value=\"1.2.3\"") && Contains("name=\"host_cpu\"") &&
                      Contains("name=\"lane_far\" value=\"absent: "));
}

TEST_CASE("what fails beside the falsifiers is an error in JUnit, though all of them hold") {
  const TemporaryFolder folder;
  Verdict verdict = judge_text(contract_text(held_claim));
  CHECK_THAT(junit_report({&verdict, 1}, "1"), Contains("tests=\"1\" failures=\"0\" errors=\"0\""));
  verdict.failure = "the disk is full";
  verdict.captured_nothing = {{"lane 'far' is absent", "far", false}, {"lane 'fed' is absent", "fed", true}};
  const std::string xml = junit_report({&verdict, 1}, "1");
  CHECK(junit_breaches(written(folder, "junit.xml", xml)) == "");
  CHECK_THAT(xml, Contains("tests=\"3\" failures=\"0\" errors=\"2\"") && Contains("name=\"(run)\"") &&
                      Contains("the disk is full") && Contains("name=\"(capture)\"") && !Contains("fed"));
}

TEST_CASE("the check of JUnit files finds a planted breach") {
  const std::string told = junit_breaches(MOE_DIAG_SOURCE_DIR "/tests/golden/junit/invalid.xml");
  CHECK_THAT(told, Contains("'name' is required") && Contains("passed") && Contains("'none'"));
}

TEST_CASE("whatever a text holds, the XML stays XML") {
  const TemporaryFolder folder;
  Many many(1, "a < b && \"c\" ]]> 'd' \x01\x1b[31m \xff\xc3 \xed\xa0\x80 \xef\xbf\xbf \xc3\xa9\n\ttab");
  many.contract.path = "\xfe.yaml";
  many.verdict.failure = std::string("]]></system-err>\0", 17) + "\x7f";
  const std::string file = written(folder, "junit.xml", junit_report({&many.verdict, 1}, "1"));
  CHECK(junit_breaches(file) == "");
  const std::string xml = read_text(file);
  CHECK_THAT(xml, Contains("a &lt; b &amp;&amp; &quot;c&quot; ]]&gt;") && Contains("\xc3\xa9\n\ttab"));
}

TEST_CASE("the JSON follows its schema, and every key is explained") {
  const TemporaryFolder folder;
  const Verdict verdict = all_outcomes();
  const Verdict faulty =
      judge_text(contract_text(false_claim), {}, {"{inject: nan, stage: moe_expert_out, layer: 1, lane: free}"});
  const std::vector<Verdict> both = {verdict, faulty};
  const std::string page = read_text(MOE_DIAG_SOURCE_DIR "/docs/verdict-json.md");
  for (const std::string& text : {json_report(verdict, "1"), json_report(faulty, "1"), json_report(both, "1"),
                                  json_report(std::span<const Verdict>(), "1")}) {
    CHECK(json_breaches(written(folder, "verdict.json", text)) == "");
    for (const std::string& key : keys_of(nlohmann::json::parse(text))) {
      INFO(key);
      CHECK(page.find("`" + key + "`") != std::string::npos);
    }
  }
  const auto json = nlohmann::json::parse(json_report(verdict, "1.2.3"));
  CHECK(json["schema_version"] == 1);
  CHECK(json["tool"]["version"] == "1.2.3");
  CHECK(json["host"]["cores"] > 0);
  CHECK_FALSE(json["host"]["cpu"].get<std::string>().empty());
  CHECK_FALSE(json["lanes"][1]["instruction_set"].get<std::string>().empty());
}

TEST_CASE("the check of JSON files finds what is missing, wrong, and not explained") {
  const TemporaryFolder folder;
  auto json = nlohmann::json::parse(json_report(all_outcomes(), "1"));
  json["outcomes"]["held"] = -1;
  json.erase("lanes");
  json["falsifiers"][0]["colour"] = "red";
  const std::string told = json_breaches(written(folder, "verdict.json", json.dump()));
  CHECK_THAT(told, Contains("-1") && Contains("colour"));
  CHECK(json_breaches(written(folder, "empty.json", "{}")) != "");
}

TEST_CASE("GitHub is shown the contract's line of what does not hold") {
  const std::vector<Verdict> verdicts = {all_outcomes()};
  const auto lines = lines_of(github_annotations(verdicts, ""));
  REQUIRE(lines.size() == 3);
  const std::string text = gate_text("every", "");
  const auto first_line = std::count(text.begin(), text.end(), '\n') + 1;
  CHECK_THAT(lines[0], StartsWith("::error file=test.yaml,line=" + std::to_string(first_line + 1) +
                                  ",title=every%3A FAILS is falsified::closer than f32 is%0Aprompt short"));
  CHECK_THAT(lines[1], Contains("line=" + std::to_string(first_line + 2) + ",title=every%3A BLIND is vacuous::"));
  CHECK_THAT(lines[2], StartsWith("::warning ") && Contains("FAR is untested"));
}

TEST_CASE("GitHub is shown ten annotations at most, and how many more there are") {
  const Many ten(10), many(17);
  CHECK(lines_of(github_annotations({&ten.verdict, 1}, "")).size() == 10);
  const auto lines = lines_of(github_annotations({&many.verdict, 1}, ""));
  REQUIRE(lines.size() == 11);
  CHECK_THAT(lines[10], StartsWith("::notice title=moe-diag::7 more"));
}

TEST_CASE("no text can end an annotation or a row of the summary, or begin another") {
  Many many(1, "100% | `code` \n::error::fake\r <b>*x*</b>");
  many.contract.path = "odd, name:1%.yaml";
  const std::string text = github_annotations({&many.verdict, 1}, "");
  CHECK(lines_of(text).size() == 1);
  CHECK_THAT(text, Contains("file=odd%2C name%3A1%25.yaml,line=10,") && Contains("100%25 | `code` %0A::error::fake"));
  const auto rows = lines_of(github_summary({&many.verdict, 1}));
  const auto row =
      std::find_if(rows.begin(), rows.end(), [](const auto& l) { return l.find("F0") != std::string::npos; });
  REQUIRE(row != rows.end());
  CHECK_THAT(*row,
             Contains("| **vacuous** | F0 | 100% \\| \\`code\\`  ::error::fake") && Contains("\\<b\\>\\*x\\*\\</b\\>"));
  int bars = 0;
  for (std::size_t i = 0; i < row->size(); ++i) bars += (*row)[i] == '|' && (i == 0 || (*row)[i - 1] != '\\');
  CHECK(bars == 7);
}

TEST_CASE("the mistakes of a contract are annotated where they stand") {
  const auto lines =
      lines_of(github_annotations("a:b.yaml:12:5: key: unknown\ncannot read x.yaml\nc.yaml:3:x: no", ""));
  REQUIRE(lines.size() == 3);
  CHECK(lines[0] == "::error file=a%3Ab.yaml,line=12,col=5,title=moe-diag::key: unknown");
  CHECK(lines[1] == "::error title=moe-diag::cannot read x.yaml");
  CHECK(lines[2] == "::error title=moe-diag::c.yaml:3:x: no");
}

TEST_CASE("the runner annotates, adds to the step's summary, and keeps JSON on standard output apart") {
  const TemporaryFolder folder;
  std::filesystem::create_directories(folder / "repository/contracts");
  write_text(folder / "repository/contracts/a.yaml", gate_text("a", held_claim + false_claim));
  write_text(folder / "summary.md", "before\n");
  const std::string command = "cd " + quoted(folder / "repository/contracts") +
                              " && GITHUB_WORKSPACE=" + quoted(folder / "repository") +
                              " GITHUB_STEP_SUMMARY=" + quoted(folder / "summary.md") + " " + tool() +
                              " run a.yaml --overwrite --out " + quoted(folder / "out") + " --github ";
  const Finished run = run_command(command);
  CHECK(run.code == 1);
  CHECK_THAT(run.out, Contains("\n::error file=contracts/a.yaml,line="));
  CHECK_THAT(read_text(folder / "summary.md"), StartsWith("before\n### FALSIFIED: a 1.0.0") &&
                                                   Contains("| **falsified** | FAILS |") &&
                                                   Contains("| held | HOLDS |"));
  const Finished both = run_command(command + "--json -");
  CHECK(both.code == 2);
  CHECK_THAT(both.err, Contains("--json -"));
  const Finished wrong = run_command(command + "--set falsifiers.HOLDS.equals=x");
  CHECK(wrong.code == 2);
  CHECK_THAT(wrong.out, StartsWith("::error "));
  write_text(folder / "repository/contracts/a.yaml", "metadata: 7\n");
  CHECK_THAT(run_command(command).out, Contains("::error file=contracts/a.yaml,line=1,col="));
}

TEST_CASE("a planted fault and --set are told wherever an outcome is") {
  const TemporaryFolder folder;
  write_text(folder / "a.yaml", gate_text("a", held_claim + false_claim));
  const Finished run =
      run_command("cd " + quoted(folder.str()) + " && GITHUB_STEP_SUMMARY=summary.md " + tool() +
                  " run a.yaml --github --junit j.xml --set lanes.free.threads=1 --inject '{inject: scale, stage: "
                  "moe_expert_out, layer: 2, lane: free}'");
  CHECK(run.code == 1);
  CHECK_THAT(run.out, Contains("::warning file=a.yaml,title=a%3A not the contract as it stands::planted fault: scale"));
  CHECK(junit_breaches(folder / "j.xml") == "");
  CHECK_THAT(read_text(folder / "j.xml"), Contains("<property name=\"planted\" value=\"scale by 2 at moe_expert_out") &&
                                              Contains("<property name=\"set\" value=\"lanes.free.threads=1\"/>") &&
                                              Contains("\nplanted fault: scale") && Contains("stated at a.yaml:"));
  CHECK_THAT(read_text(folder / "summary.md"), Contains("Planted fault: scale by 2 at moe\\_expert\\_out") &&
                                                   Contains("Changed by --set: lanes.free.threads=1") &&
                                                   Contains("First divergence:\n\n```\n  where      prompt short"));
}

TEST_CASE("a row of the summary is of one sample, and no cause is cut within a word") {
  Verdict verdict = judge_text(
      contract_text("  - {id: A, claim: c, lane: step, stage: moe_expert_out, metric: rel_l2, at_most: 1e-5}\n"), {},
      {"{inject: scale, stage: moe_expert_out, layer: 2, lane: step}"});
  const Judgement& j = verdict.judgements[0];
  REQUIRE(j.outcome == Outcome::falsified);
  const std::string row = github_summary({&verdict, 1});
  const Sample& worst = j.worst()->worst;
  CHECK_THAT(row, Contains(fmt::format("| {:.6g} |", worst.value)) &&
                      Contains(fmt::format("position {}, layer 2, moe\\_expert\\_out", worst.position)));
  Many many(1);
  many.verdict.judgements[0].reason = std::string(180, 'x') + " multiplied by 1234567890.123456789";
  CHECK_THAT(github_summary({&many.verdict, 1}), Contains("multiplied by... |") && !Contains("1234"));
}

TEST_CASE("a call of which nothing can be computed writes its error where it was asked to") {
  const TemporaryFolder folder;
  write_text(folder / "a.yaml", gate_text("a", held_claim + false_claim));
  const std::string command = "cd " + quoted(folder.str()) + " && GITHUB_STEP_SUMMARY=summary.md " + tool() +
                              " run a.yaml --github --junit j.xml --overwrite ";
  CHECK(run_command(command + "--set lanes.free.numerics=f31").code == 2);
  CHECK(junit_breaches(folder / "j.xml") == "");
  CHECK_THAT(read_text(folder / "j.xml"), Contains("errors=\"1\"") && Contains("name=\"(call)\"") && Contains("f31"));
  CHECK_THAT(read_text(folder / "summary.md"), Contains("nothing was computed") && Contains("f31"));

  write_text(folder / "bad.gguf", "GGUF, but not really");
  const Finished corrupt = run_command(command + "--out out --set 'model={gguf: bad.gguf}'");
  CHECK(corrupt.code == 4);
  CHECK(std::count(corrupt.err.begin(), corrupt.err.end(), '\n') == 1);
  CHECK_THAT(corrupt.out, Contains("FAILED: a") && Contains("verdict    out/verdict.json"));
  CHECK(junit_breaches(folder / "j.xml") == "");
  const std::string what = corrupt.err.substr(std::string("moe-diag: ").size(), 40);
  for (const std::string& text : {read_text(folder / "out/verdict.json"), corrupt.err}) {
    const std::size_t at = text.find(what);
    CHECK(at != std::string::npos);
    CHECK(text.find(what, at + 1) == std::string::npos);
  }
  CHECK(json_breaches(folder / "out/verdict.json") == "");
}

TEST_CASE("what was not captured is annotated where it is asked for") {
  Verdict verdict = judge_text(
      gate_text("a", held_claim,
                "capture: [{stages: lm_head, lanes: [truth, far], to: dump}]\nsinks: {dump: {sink: stats, file: "
                "dump.csv}}\n"),
      [] {
        static const TemporaryFolder folder;
        RunOptions options;
        options.out = folder / "out";
        return options;
      }());
  const std::string text = gate_text("a", "");
  const auto line =
      std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(text.find("falsifiers:")), '\n') + 1;
  CHECK_THAT(github_annotations({&verdict, 1}, ""),
             Contains("::warning file=test.yaml,line=" + std::to_string(line) + ",title=a%3A not captured::"));
}

TEST_CASE("a JUnit file appears whole or not at all, and a place where it cannot is told before anything is computed") {
  const TemporaryFolder folder;
  write_text(folder / "a.yaml", gate_text("a", held_claim));
  const std::string run =
      "run " + quoted(folder / "a.yaml") + " --overwrite --out " + quoted(folder / "out") + " --junit ";
  CHECK(run_tool(run + quoted(folder / "junit.xml")).code == 0);
  CHECK(junit_breaches(folder / "junit.xml") == "");
  CHECK(std::distance(std::filesystem::directory_iterator(folder.str()), {}) == 3);  // and nothing unfinished
  std::filesystem::remove_all(folder / "out");
  const Finished nowhere = run_tool(run + quoted(folder / "no/such/junit.xml"));
  CHECK(nowhere.code == 2);
  CHECK_THAT(nowhere.err, Contains("--junit"));
  CHECK(run_tool(run + quoted(folder.str())).code == 2);
  CHECK(run_tool(run + "''").code == 2);
  CHECK(run_command("GITHUB_STEP_SUMMARY=/no/such/summary.md " + tool() + " " + run + quoted(folder / "junit.xml") +
                    " --github")
            .code == 2);
  CHECK_FALSE(std::filesystem::exists(folder / "out"));
}

}  // namespace moe_diag
