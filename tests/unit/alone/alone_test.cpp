// SPDX-License-Identifier: MIT
// Passes of a lane alone: `identical` in all its forms, each seen to fail, and what is timed.
#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "core/alone/digests.hpp"
#include "core/alone/timing.hpp"
#include "core/model/model.hpp"
#include "core/report/report.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/process.hpp"
#include "tests/support/small_contract.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag {
namespace {

using Catch::Matchers::Contains;

const std::string tiny = "{synthetic: tiny, seed: 7}";
const std::vector<std::string> forms = {"untraced", "rerun", "threads", "chunks"};

std::string identical(const std::string& id, const std::string& lane, const std::string& to,
                      const std::string& more = "") {
  return fmt::format(
      "  - {{id: {}, claim: same bytes, lane: {}, stage: all, metric: identical, to: {}, equals: 1{}}}\n", id, lane, to,
      more);
}

// A lane `fickle` of that mood beside an oracle that computes.
Verdict judge_mood(const std::string& mood, const std::string& falsifiers,
                   const std::string& tokens = "[3, 141, 59, 26]") {
  std::string text = contract_text(falsifiers, tiny, tokens);
  text.replace(text.find("  free:"), 0, "  fickle: {backend: bad, numerics: odd, mood: " + mood + "}\n");
  return judge_text(text, {}, {}, {std::string(MOE_DIAG_BAD_PLUGINS) + "/fickle_lane", MOE_DIAG_PLUGINS});
}

}  // namespace

TEST_CASE("cpu lanes are identical in every form, decode and chunks included, and controls see what is planted") {
  std::string falsifiers;
  const std::string controls =
      ", controls: [{inject: scale, stage: moe_expert_out, layer: 2, factor: 1.0001, positions: last}, "
      "{inject: wrong_expert, stage: moe_expert_gate, layer: 1}, {inject: nan, stage: lm_head, index: 3, positions: "
      "2}]";
  for (const std::string lane : {"free", "truth"})
    for (const std::string& form : forms) falsifiers += identical(lane + "-" + form, lane, form, controls);
  RunOptions options;
  options.controls = true;
  const Verdict verdict =
      judge_text(contract_text(falsifiers, tiny, "[3, 141, 59, 26], generate: 2, chunk: 3"), options);
  REQUIRE(verdict.failure.empty());
  for (const Judgement& j : verdict.judgements) {
    INFO(j.spec->id << ": " << j.reason);
    CHECK(j.outcome == Outcome::held);
    CHECK(j.samples == 12);
    CHECK(j.remarks.empty());
    REQUIRE(j.controls.size() == 3);
    for (const ControlResult& c : j.controls) CHECK(c.tripped);
    CHECK_THAT(j.controls[2].message, Contains("falsified at lm_head"));
  }
}

TEST_CASE("each form sees the lane that breaks it, and only that one") {
  const std::vector<std::string> moods = {"alone", "again", "threads", "chunks"};
  for (std::size_t broken = 0; broken < forms.size(); ++broken) {
    std::string falsifiers;
    // A second run within one run of the contract is a rerun for all forms: it is judged alone.
    for (std::size_t i = 0; i < forms.size(); ++i)
      if (moods[broken] != "again" || i == broken) falsifiers += identical(forms[i], "fickle", forms[i]);
    const Verdict verdict = judge_mood(moods[broken], falsifiers);
    REQUIRE(verdict.failure.empty());
    for (const Judgement& j : verdict.judgements) {
      const bool is_broken = j.spec->id == forms[broken];
      INFO(moods[broken] << ": " << j.spec->id << ' ' << j.reason);
      CHECK(j.outcome == (is_broken ? Outcome::falsified : Outcome::held));
      CHECK(j.samples == 8);
      CHECK(j.failing == (is_broken ? 1 : 0));
      if (!is_broken) continue;
      const Sample& first = j.leading_failure()->first_failing;
      CHECK(first.site == Site{stages::lm_head, -1});
      CHECK(first.position == 2);
      CHECK(first.measure.max_index == 5);
      REQUIRE(j.remarks.size() == 1);
      CHECK_THAT(j.remarks[0],
                 Contains("prompt short, position 2, lm_head, element 5: ") && Contains("1 of 512 values"));
    }
  }
}

TEST_CASE("the report of a broken identity names both passes and both values") {
  const Verdict verdict = judge_mood("threads", identical("T", "fickle", "threads"));
  const std::string report = console_report(verdict, false);
  CHECK_THAT(report, Contains("identical to threads = 0, claimed equals 1"));
  CHECK_THAT(report, Contains(".5 in 7 threads, ") && Contains(" in 1 thread; "));
  const auto json = nlohmann::json::parse(json_report(verdict, "1"));
  CHECK(json["falsifiers"][0]["to"] == "threads");
  CHECK(json["falsifiers"][0]["remarks"].size() == 1);
}

TEST_CASE("what cannot be compared is untested, by name") {
  const Verdict threads = judge_mood("threadless", identical("T", "fickle", "threads"));
  CHECK(threads.judgements[0].outcome == Outcome::untested);
  CHECK_THAT(threads.judgements[0].reason, Contains("'fickle'") && Contains("no option 'threads'"));

  const Verdict chunks = judge_mood("steady", identical("C", "fickle", "chunks"), "[3]");
  CHECK(chunks.judgements[0].outcome == Outcome::untested);
  CHECK_THAT(chunks.judgements[0].reason, Contains("one token"));

  std::string text = contract_text(identical("A", "free", "rerun"), tiny);
  text.replace(text.find("free: {backend: cpu"), 19, "free: {backend: abacus");
  const Verdict absent = judge_text(text);
  CHECK(absent.judgements[0].outcome == Outcome::untested);
  CHECK_THAT(absent.judgements[0].reason, Contains("'free' is absent"));

  const std::vector<std::string> null = {std::string(MOE_DIAG_BAD_PLUGINS) + "/null_lane", MOE_DIAG_PLUGINS};
  text = contract_text(identical("A", "free", "rerun"), tiny);
  text.replace(text.find("free: {backend: cpu"), 19, "free: {backend: bad");
  const Verdict without = judge_text(text, {}, {}, null);
  CHECK(without.judgements[0].outcome == Outcome::untested);
  CHECK_THAT(without.judgements[0].reason, Contains("has no "));
}

TEST_CASE("a fault of the command line is seen by untraced, and one that nothing would see is refused") {
  const Verdict verdict =
      judge_text(contract_text(identical("U", "free", "untraced") + identical("R", "free", "rerun"), tiny), {},
                 {"{inject: scale, stage: attn_out, layer: 1, lane: free}"});
  CHECK(verdict.judgements[0].outcome == Outcome::falsified);
  CHECK(verdict.judgements[1].outcome == Outcome::held);
  CHECK_THROWS_WITH(judge_text(contract_text(identical("R", "free", "rerun"), tiny), {},
                               {"{inject: scale, stage: attn_out, layer: 1, lane: free}"}),
                    Contains("nothing looks at lane 'free' in the lockstep run"));
}

TEST_CASE("a sequence that ends early leaves what is behind untested") {
  const Verdict verdict = judge_text(contract_text(identical("R", "free", "rerun"), tiny, "[3, 141, 59], generate: 3"),
                                     {}, {"{inject: nan, stage: lm_head, positions: 3, lane: truth}"});
  CHECK(verdict.judgements[0].outcome == Outcome::untested);
  CHECK(verdict.judgements[0].samples == 8);
  CHECK_THAT(verdict.judgements[0].reason, Contains("ends before position 4"));
}

TEST_CASE("what is timed has a median and a spread for each prompt, and no control") {
  const std::string falsifiers = R"(
  - {id: SECONDS, claim: a, lane: free, metric: seconds, at_most: 1000, repeat: 4}
  - {id: RATE, claim: a, lane: free, metric: tokens_per_second, at_least: 1e-3}
  - {id: NEVER, claim: a, lane: free, metric: tokens_per_second, at_least: 1e12, repeat: 1}
  - {id: OVERHEAD, claim: a, lane: free, metric: capture_overhead, at_most: 1e6, repeat: 2}
  - {id: MEMORY, claim: a, lane: free, metric: device_memory_fraction, at_most: 0.95}
)";
  RunOptions options;
  options.controls = true;
  const Verdict verdict = judge_text(contract_text(falsifiers, tiny, "[3, 141, 59], generate: 2"), options);
  REQUIRE(verdict.failure.empty());
  const auto outcome = [&](int i) { return verdict.judgements[static_cast<std::size_t>(i)].outcome; };
  CHECK(outcome(0) == Outcome::held);
  CHECK(outcome(1) == Outcome::held);
  CHECK(outcome(2) == Outcome::falsified);
  CHECK(outcome(3) == Outcome::held);
  CHECK(outcome(4) == Outcome::untested);
  CHECK_THAT(verdict.judgements[4].reason, Contains("no device memory"));
  for (const int i : {0, 1, 2, 3}) {
    const Judgement& j = verdict.judgements[static_cast<std::size_t>(i)];
    CHECK(j.samples == 1);
    REQUIRE(j.spreads.size() == 1);
    CHECK(j.spreads[0].repeats == j.spec->repeat);
    CHECK(j.spreads[0].median == j.worst()->worst.value);
    CHECK(j.spreads[0].median > 0);
  }
  CHECK(verdict.first_divergence() == nullptr);  // too slow is no divergence
  const std::string report = console_report(verdict, true);
  CHECK_THAT(report, Contains("none for SECONDS, RATE, NEVER, OVERHEAD, MEMORY"));
  const auto json = nlohmann::json::parse(json_report(verdict, "1"));
  CHECK(json["falsifiers"][0]["controls_apply"] == false);
  CHECK(json["falsifiers"][0]["spreads"][0]["prompt"] == "short");
  CHECK(json["falsifiers"][0]["worst"]["position"].is_null());
  CHECK(json["falsifiers"][0]["worst"]["stage"].is_null());
}

TEST_CASE("the share of a device's memory is what the lane says") {
  const Verdict verdict =
      judge_mood("steady", "  - {id: M, claim: a, lane: fickle, metric: device_memory_fraction, at_most: 0.7}\n");
  CHECK(verdict.judgements[0].outcome == Outcome::falsified);
  CHECK(verdict.judgements[0].worst()->worst.value == 0.75);
}

TEST_CASE("the median is the middle") {
  CHECK(median_of({3}) == 3);
  CHECK(median_of({5, 1, 3}) == 3);
  CHECK(median_of({4, 1, 3, 2}) == 2.5);
}

namespace {

// A contract that compares two lanes with the digests beside it.
class Digested {
 public:
  Digested() { write(contract_text(claims(), tiny, "[3, 141, 59], generate: 2")); }

  static std::string claims() {
    return identical("FED", "step", "{digest: d.json}",
                     ", controls: [{inject: scale, stage: moe_router_weights, layer: 3, positions: 4}]") +
           identical("FREE", "free", "{digest: d.json}",
                     ", controls: [{inject: wrong_expert, stage: moe_expert_up, layer: 0}]");
  }
  void write(const std::string& text) { write_text(folder_ / "c.yaml", text); }
  Finished digest(const std::string& more = "") { return digest_to(file(), more); }
  Finished digest_to(const std::string& file, const std::string& more = "") {
    return run_tool("digest " + quoted(folder_ / "c.yaml") + " --out " + quoted(file) + more);
  }
  Finished run(const std::string& more = "") {
    const Finished run =
        run_tool("run " + quoted(folder_ / "c.yaml") + " --overwrite --out " + quoted(folder_ / "out") + more);
    if (run.code != 2 && run.code != 4) verdict = nlohmann::json::parse(read_text(folder_ / "out/verdict.json"));
    return run;
  }
  std::string file() const { return folder_ / "d.json"; }
  std::string reason(int i) const {
    return verdict["falsifiers"][static_cast<std::size_t>(i)]["reason"].get<std::string>();
  }

  nlohmann::json verdict;

 private:
  TemporaryFolder folder_;
};

}  // namespace

TEST_CASE("a run stands by the digests of an earlier one, and a fault does not") {
  Digested made;
  const Finished without = made.run();
  CHECK(without.code == 3);
  CHECK_THAT(made.reason(0), Contains("d.json: there is no such file") && Contains("moe-diag digest"));

  const Finished digest = made.digest();
  INFO(digest.err);
  REQUIRE(digest.code == 0);
  CHECK_THAT(digest.out, Contains(fmt::format("{} rows of 2 lanes", 2 * 5 * (4 * 23 + 3))));
  const Finished run = made.run(" --controls --threads 1");
  INFO(run.out << run.err);
  CHECK(run.code == 0);
  for (const auto& f : made.verdict["falsifiers"]) CHECK(f["samples"] == 5 * (4 * 23 + 3));

  CHECK(made.run(" --inject '{inject: scale, stage: moe_ffn_out, layer: 2, positions: 3, lane: free}'").code == 1);
  const auto& falsified = made.verdict["falsifiers"][1];
  CHECK(falsified["outcome"] == "falsified");
  CHECK(falsified["first_failing"]["stage"] == "moe_ffn_out");
  CHECK(falsified["first_failing"]["layer"] == 2);
  CHECK(falsified["first_failing"]["position"] == 3);
  CHECK_THAT(falsified["remarks"][0].get<std::string>(), Contains("position 3, layer 2, moe_ffn_out: digest"));
  CHECK_THAT(falsified["remarks"][1].get<std::string>(), Contains("the digests are of cpu f32"));

  CHECK(made.digest().code == 2);  // is there already
  const Finished nowhere = made.digest_to("/no/such/folder/d.json");
  CHECK(nowhere.code == 2);
  CHECK_THAT(nowhere.err, Contains("/no/such/folder/d.json"));
  CHECK(made.digest(" --overwrite --lane nobody").code == 2);
  CHECK(made.digest(" --overwrite --set model.seed=8").code == 0);
}

TEST_CASE("digests of something else are never equal: untested, by name") {
  Digested made;
  REQUIRE(made.digest(" --lane free").code == 0);
  const auto untested = [&](const std::string& set, int falsifier, const std::string& why) {
    INFO(set);
    CHECK(made.run(set).code == 3);
    CHECK(made.verdict["falsifiers"][static_cast<std::size_t>(falsifier)]["outcome"] == "untested");
    CHECK_THAT(made.reason(falsifier), Contains(why));
  };
  untested("", 0, "no digests of lane 'step'");
  CHECK(made.verdict["falsifiers"][1]["outcome"] == "held");
  untested(" --set model.seed=8", 1, "another model");
  untested(" --set prompts.short.tokens=[3,141,60]", 1, "other tokens for prompt 'short', from position 2 on");
  untested(" --set prompts.short.generate=3", 1, "other tokens for prompt 'short', from position 5 on");
  untested(" --set prompts.short.id=long", 1, "no digests of prompt 'long'");
  untested(" --set lanes.free.numerics=f64", 1, "numerics f32, it has f64 now");

  std::string json = read_text(made.file());
  Digests digests = read_digests(made.file(), qwen3moe.stages);
  digests.rows.erase({"short", "free", {stages::attn_out, 1}, 4});
  write_text(made.file(), digests_json(digests));
  untested("", 1, "no digest of prompt short, position 4, layer 1, attn_out");
}

TEST_CASE("a model that differs in one bit of one expert is another model, whatever its header says") {
  const TemporaryFolder folder;
  const std::string model = folder / "m.gguf", contract = folder / "c.yaml";
  REQUIRE(run_tool("synth " + quoted(model) + " --seed 7").code == 0);
  write_text(contract, contract_text(identical("SAME", "free", "{digest: d.json}") +
                                         "  - {id: NEAR, claim: c, lane: free, stage: lm_head, metric: rel_l2, "
                                         "at_most: 1e-3}\n",
                                     "{gguf: m.gguf}"));
  REQUIRE(run_tool("digest " + quoted(contract) + " --out " + quoted(folder / "d.json")).code == 0);
  const std::string run = "run " + quoted(contract) + " --overwrite --out " + quoted(folder / "out");
  REQUIRE(run_tool(run).code == 0);
  const std::string fault = " --set model=\"{gguf: m.gguf}\" --inject '{inject: scale, stage: lm_head, lane: free}'";
  REQUIRE(run_tool(run + fault).code == 1);
  const std::string of_verdict = "repro " + quoted(folder / "out/verdict.json") + " --out ";
  const Finished of_passes = run_tool(of_verdict + quoted(folder / "no") + " --falsifier SAME");
  CHECK(of_passes.code == 2);
  CHECK_THAT(of_passes.err, Contains("SAME is about 'identical'"));
  const Finished own = run_tool(of_verdict + quoted(folder / "case") + " --falsifier NEAR");
  INFO(own.out << own.err);
  CHECK(own.code == 0);

  const Model before = Model::open(model);
  const std::string digest = before.digest();
  const Weight& weight = before.weight("ffn_down_exps", 2);
  std::string bytes = read_text(model);
  bytes[before.place_of(weight).offset + 5 * weight.expert_bytes() + 100] ^= 1;
  write_text(folder / "other.gguf", bytes);
  std::filesystem::rename(folder / "other.gguf", model);
  const Model after = Model::open(model);
  REQUIRE(after.sampled() == before.sampled());

  const Finished repro = run_tool(of_verdict + quoted(folder / "no") + " --falsifier NEAR");
  CHECK(repro.code == 2);
  CHECK_THAT(repro.err, Contains("this is not the model of") && Contains(digest) && Contains(after.digest()));
  const Finished other = run_tool(run);
  CHECK(other.code == 3);
  CHECK_THAT(other.out, Contains("digests of another model") && Contains(digest) && Contains(after.digest()));
  const auto verdict = nlohmann::json::parse(read_text(folder / "out/verdict.json"));
  CHECK(verdict["model"]["digest"] == after.digest());
}

TEST_CASE("a file that holds no digests ends the run before anything is computed") {
  Digested made;
  REQUIRE(made.digest().code == 0);
  const std::string right = read_text(made.file());
  CHECK(digests_json(read_digests(made.file(), qwen3moe.stages)) == right);
  const auto refused = [&](const std::string& text, const std::string& why) {
    write_text(made.file(), text);
    const Finished run = made.run();
    INFO(text.substr(0, 200));
    CHECK(run.code == 4);
    CHECK_THAT(run.err, Contains("d.json: ") && Contains(why));
  };
  const auto changed = [&](const std::string& from, const std::string& to) {
    std::string text = right;
    const std::size_t at = text.find(from);
    REQUIRE(at != std::string::npos);
    return text.replace(at, from.size(), to);
  };
  refused("", "not a file of digests");
  refused("{", "not JSON");
  refused("[]", "not a file of digests");
  refused(std::string(100000, '['), "not a file of digests");
  refused(changed("\"moe-diag digests\"", "\"moe-diag capture\""), "not a file of digests");
  refused(changed("\"format_version\": 2", "\"format_version\": 1"), "format_version");
  refused(changed("\"sites\"", "\"places\""), "\"sites\" is missing");
  refused(changed("\"positions\":[0,", "\"positions\":["), "4 positions and 5 digests");
  refused(changed("\"positions\":[0,1", "\"positions\":[1,1"), "two digests of one row");
  refused(changed("\"positions\":[0,", "\"positions\":[-1,"), "position");
  refused(changed("\"xxh3\":[\"", "\"xxh3\":[\"x"), "hexadecimal");
  refused(changed("\"tokens\":[3", "\"tokens\":[1e9"), "token");
  refused(changed("\"numerics\":\"f32\"", "\"numerics\":32"), "\"numerics\": expected text");
  // A model with other stages wrote these.
  write_text(made.file(), changed("\"stage\":\"embedding\"", "\"stage\":\"moe_shared_out\""));
  const Finished other = made.run();
  CHECK(other.code == 3);
  CHECK_THAT(other.out, Contains("the stage 'moe_shared_out', which this model does not have"));
}

TEST_CASE("what has nothing to digest says so") {
  Digested made;
  made.write(contract_text(identical("R", "free", "rerun"), tiny));
  const Finished digest = made.digest();
  CHECK(digest.code == 2);
  CHECK_THAT(digest.err, Contains("nothing to digest"));
  made.write(contract_text(Digested::claims(), "{gguf: /no/such/model.gguf}", "[3, 141, 59], generate: 2"));
  CHECK(made.digest().code == 3);
}

}  // namespace moe_diag
