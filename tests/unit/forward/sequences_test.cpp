// SPDX-License-Identifier: MIT
// Prompts in chunks and what the oracle goes on with, through the whole runner.
#include <algorithm>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/support/process.hpp"
#include "tests/support/small_contract.hpp"

namespace moe_diag {
namespace {

namespace fs = std::filesystem;
using Catch::Matchers::Contains;
using Json = nlohmann::json;

// Captures everything of an oracle and of an f32 lane.
const std::string capture_all = R"(
metadata: {id: capture, version: 1.0.0, description: made by a test}
model: {synthetic: tiny, seed: 7}
prompts: [{id: short, tokens: [3, 141, 59, 26, 5]}]
oracle: truth
lanes: {truth: {backend: cpu, numerics: f64}, f32: {backend: cpu, numerics: f32}}
capture: [{stages: all, to: dump}]
sinks: {dump: {sink: npy, dir: dump}}
)";

// Runs it with changes; returns its captures and its verdict.
class Run {
 public:
  explicit Run(const std::string& set, int code = 0, const std::string& contract = capture_all) {
    write_text(folder_ / "c.yaml", contract);
    const Finished run = run_tool("run " + quoted(folder_ / "c.yaml") + " --out " + quoted(folder_ / "out") + set);
    INFO(set << '\n' << run.out << run.err);
    CHECK(run.code == code);
    out = run.out;
    verdict = Json::parse(read_text(folder_ / "out/verdict.json"));
  }

  fs::path dump() const { return folder_ / "out/dump"; }
  Json manifest() const { return Json::parse(read_text(dump() / "manifest.json")); }

  std::string out;
  Json verdict;

 private:
  TemporaryFolder folder_;
};

void check_same_files(const Run& a, const Run& b) {
  int files = 0;
  for (const auto& entry : fs::recursive_directory_iterator(a.dump())) {
    if (entry.path().extension() != ".npy") continue;
    INFO(entry.path());
    CHECK(read_text(entry.path()) == read_text(b.dump() / fs::relative(entry.path(), a.dump())));
    ++files;
  }
  CHECK(files == 2 * (4 * 23 + 3));
}

// The rows of a capture of doubles.
std::vector<std::vector<double>> rows_of(const fs::path& file, std::size_t count) {
  const std::string bytes = read_text(file);
  const auto header =
      static_cast<std::size_t>(10 + static_cast<unsigned char>(bytes[8]) + 256 * static_cast<unsigned char>(bytes[9]));
  const std::size_t width = (bytes.size() - header) / sizeof(double) / count;
  std::vector<std::vector<double>> rows(count, std::vector<double>(width));
  for (std::size_t r = 0; r < count; ++r)
    std::memcpy(rows[r].data(), bytes.data() + header + r * width * sizeof(double), width * sizeof(double));
  return rows;
}

const std::string generate = " --set prompts.short.generate=4";

}  // namespace

TEST_CASE("a prompt whole, in chunks and token by token gives the same bytes at every stage") {
  const Run whole("");
  for (const std::string chunk : {"1", "2", "3", "5", "100"})
    check_same_files(whole, Run(" --set prompts.short.chunk=" + chunk));
}

TEST_CASE("decode steps give the bytes that their tokens give as part of the prompt") {
  const Run generated(generate);
  const Json prompt = generated.verdict["prompts"][0];
  REQUIRE(prompt["generated"].size() == 4);
  Json tokens = prompt["tokens"];
  tokens.insert(tokens.end(), prompt["generated"].begin(), prompt["generated"].end());
  const Run whole(" --set prompts.short.tokens=" + tokens.dump());
  check_same_files(generated, whole);
  check_same_files(generated, Run(generate + " --set prompts.short.chunk=2"));

  // Each is the one the oracle finds most likely, by its logits as the capture has them.
  const auto logits = rows_of(whole.dump() / "short/truth/lm_head.npy", tokens.size());
  for (std::size_t i = 5; i < tokens.size(); ++i) {
    const auto& row = logits[i - 1];
    CHECK(std::max_element(row.begin(), row.end()) - row.begin() == tokens[i].get<std::ptrdiff_t>());
  }

  CHECK(generated.manifest()["prompts"][0]["tokens"] == tokens);
  CHECK(generated.manifest()["prompts"][0]["generated"] == 4);
  CHECK(whole.manifest()["prompts"][0]["generated"] == 0);
  CHECK_THAT(generated.out, Contains("generated  prompt short: 4 of 4 tokens"));
}

TEST_CASE("positions are of the whole sequence, and controls see them") {
  const std::string text = contract_text(R"(
  - {id: LAST, claim: a, lane: free, stage: lm_head, metric: rel_l2, at_most: 1e-4, positions: -1,
     controls: [{inject: nan, stage: attn_out, layer: 2, positions: 5}]}
  - {id: ALL, claim: a, lane: step, stage: moe_ffn_out, metric: rel_l2, at_most: 1e-4,
     controls: [{inject: scale, stage: moe_ffn_out, layer: 0, positions: last}]}
)",
                                         "{synthetic: tiny, seed: 7}", "[3, 141, 59], generate: 3, chunk: 2");
  RunOptions options;
  options.controls = true;
  const Verdict verdict = judge_text(text, options);
  REQUIRE(verdict.failure.empty());
  CHECK(verdict.prompts[0].generated == 3);
  for (const Judgement& j : verdict.judgements) {
    INFO(j.spec->id << ": " << j.reason);
    CHECK(j.outcome == Outcome::held);
    REQUIRE(j.controls.size() == 1);
    CHECK(j.controls[0].tripped);
  }
  CHECK(verdict.judgements[0].samples == 1);
  CHECK(verdict.judgements[0].worst()->worst.position == 5);
  CHECK(verdict.judgements[1].samples == 6 * 4);
  CHECK(verdict.judgements[1].sites.size() == 4);  // one a site, however many passes came by it
  for (const SiteResult& site : verdict.judgements[1].sites) CHECK(site.samples == 6);
  CHECK_THROWS_WITH(judge_text(contract_text("  - {id: A, claim: a, lane: free, stage: lm_head, metric: rel_l2, "
                                             "at_most: 1, positions: 6}",
                                             "{synthetic: tiny}", "[3, 141, 59], generate: 3")),
                    Contains("there are 6, numbered 0 to 5"));
  CHECK_THROWS_WITH(judge_text(contract_text("  - {id: A, claim: a, lane: free, stage: lm_head, metric: rel_l2, "
                                             "at_most: 1}",
                                             "{synthetic: tiny}", "[3, 141, 59], generate: 100000")),
                    Contains("3 tokens and generates 100000") && Contains("context"));
}

namespace {
const std::string two_halves = R"(
  - {id: PROMPT, claim: a, lane: free, stage: moe_router_probs, metric: router_sum_error, at_most: 1e-5, positions: 0..3}
  - {id: ALL, claim: a, lane: free, stage: moe_router_probs, metric: router_sum_error, at_most: 1e-5}
)";
}

TEST_CASE("a NaN in the oracle's logits ends the sequence: what lies behind is untested, by name") {
  const Verdict verdict =
      judge_text(contract_text(two_halves, "{synthetic: tiny, seed: 7}", "[3, 141, 59], generate: 3"), {},
                 {"{inject: nan, stage: lm_head, positions: 3, lane: truth}"});
  CHECK(verdict.failure.empty());
  CHECK(verdict.prompts[0].generated == 1);
  CHECK_THAT(verdict.prompts[0].stopped, Contains("'short' ends before position 4") && Contains("NaN at position 3"));
  CHECK(verdict.judgements[0].outcome == Outcome::held);
  CHECK(verdict.judgements[1].outcome == Outcome::untested);
  CHECK(verdict.judgements[1].reason == verdict.prompts[0].stopped);
}

TEST_CASE("without its oracle a prompt does not go on, and its captures say so") {
  const Verdict verdict = judge_text([] {
    std::string text = contract_text(two_halves, "{synthetic: tiny, seed: 7}", "[3, 141, 59], generate: 3");
    return text.replace(text.find("backend: cpu"), 12, "backend: abacus");
  }());
  CHECK(verdict.judgements[0].outcome == Outcome::held);
  CHECK(verdict.judgements[1].outcome == Outcome::untested);
  CHECK_THAT(verdict.judgements[1].reason, Contains("the oracle 'truth' is absent") && Contains("abacus"));

  const Run capture(generate + " --set lanes.truth.backend=abacus --set capture.0.lanes=f32", 3);
  CHECK_THAT(capture.out, Contains("not made") && Contains("ends before position 5"));
  CHECK(capture.manifest()["prompts"][0]["tokens"].size() == 5);
  CHECK(capture.manifest()["prompts"][0]["generated"] == 0);
}

TEST_CASE("reports show the text of tokens where the model has a vocabulary") {
  const TemporaryFolder folder;
  REQUIRE(run_tool("synth " + quoted(folder / "m.gguf") + " --preset tiny --seed 7").code == 0);
  const std::string script =
      quoted(MOE_DIAG_PYTHON) + " " + quoted(MOE_DIAG_SOURCE_DIR "/tests/unit/run/add_vocabulary.py");
  const std::string texts =
      R"( a '\xc4\xa0the' '\xe4\xbd' 'two\nlines' 'it\x27s')";  // shorter than the model's vocabulary
  const Finished made =
      run_command(script + " " + quoted(folder / "m.gguf") + " " + quoted(folder / "v.gguf") + " gpt2" + texts);
  INFO(made.err);
  REQUIRE(made.code == 0);
  const std::string contract =
      contract_text("  - {id: A, claim: a, lane: free, stage: lm_head, metric: rel_l2, at_most: 0}",
                    "{gguf: " + folder / "v.gguf" + "}", "[0, 3, 1], generate: 1");
  const Run run("", 1, contract);
  CHECK_THAT(run.out, Contains("position 0 (token 0 'a'), lm_head"));
  CHECK(run.verdict["prompts"][0]["texts"][1] == R"('two\nlines')");
  CHECK(run.verdict["prompts"][0]["texts"][2] == "' the'");
  CHECK(run.verdict["prompts"][0]["texts"].size() == 4);
  CHECK(run.verdict["first_divergence"]["token"] == 0);
  CHECK(run.verdict["first_divergence"]["token_text"] == "'a'");
}

}  // namespace moe_diag
