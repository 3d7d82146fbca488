// SPDX-License-Identifier: MIT
// Under a locale that writes 0,5 for a half, all is read and written as under any other.
#include <clocale>
#include <cstdlib>
#include <regex>
#include <string>

#include "core/report/github.hpp"
#include "core/report/junit.hpp"
#include "core/report/report.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/gate.hpp"
#include "tests/support/locale.hpp"

namespace moe_diag {
namespace {

const std::string claims =
    "  - {id: STEP, claim: s, lane: step, stage: all, metric: rel_l2, at_most: 1.5e-5}\n"
    "  - {id: MIS, claim: m, lane: free, stage: lm_head, metric: mismatch_fraction, rtol: 0.25, atol: 0.125, at_most: "
    "0.75}\n"
    "  - {id: COS, claim: c, lane: free, stage: lm_head, metric: cosine_similarity, at_least: 0.9999999999}\n" +
    false_claim;

// Times, and what follows from them, differ from run to run.
std::string without_times(const std::string& text) {
  std::string out =
      std::regex_replace(text,
                         std::regex("\"(open|forward|solo|evidence|explain|controls|digest|total|seconds|judging|"
                                    "host_available)\": [-0-9.e+]+"),
                         "\"$1\": T");
  out = std::regex_replace(out, std::regex("(timestamp|time)=\"[-0-9.T:]+\""), "$1=\"T\"");
  out = std::regex_replace(out, std::regex("\"started\": \"[-0-9TZ:]+\""), "\"started\": T");
  return std::regex_replace(
      out,
      std::regex(
          "(about|open|forward|judging|lanes alone|explaining|time      |controls|, ) ?[0-9][0-9.e-]*( s| GiB)?"),
      "$1 T");
}

}  // namespace

TEST_CASE("contracts are read, and reports written, the same in a process whose locale has a decimal comma") {
  const TemporaryFolder folder;
  const std::string name = make_comma_locale(folder);
  REQUIRE(name == "de_DE.UTF-8");
  const Verdict before = judge_text(contract_text(claims));
  const std::string console = without_times(console_report(before, true)),
                    json = without_times(json_report(before, "1"));
  const std::string junit = without_times(junit_report({&before, 1}, "1")),
                    github = github_annotations({&before, 1}, "");

  ::setenv("LOCPATH", folder.str().c_str(), 1);
  REQUIRE(std::setlocale(LC_ALL, name.c_str()));
  CHECK(std::string(std::localeconv()->decimal_point) == ",");
  const Verdict after = judge_text(contract_text(claims));
  CHECK(after.contract->falsifiers[1].rtol == 0.25);
  CHECK(after.contract->falsifiers[2].bound.value == 0.9999999999);
  CHECK(without_times(console_report(after, true)) == console);
  CHECK(without_times(json_report(after, "1")) == json);
  CHECK(without_times(junit_report({&after, 1}, "1")) == junit);
  CHECK(github_annotations({&after, 1}, "") == github);
  CHECK_THROWS_AS(judge_text(contract_text(claims + "  - {id: C, claim: c, lane: free, stage: lm_head, metric: rel_l2, "
                                                    "at_most: \"0,5\"}\n")),
                  Error);
  std::setlocale(LC_ALL, "C");
  ::unsetenv("LOCPATH");
}

TEST_CASE("the runner writes the same bytes under a locale with a decimal comma") {
  const TemporaryFolder folder;
  REQUIRE_FALSE(make_comma_locale(folder).empty());
  const std::string captures =
      "capture: [{stages: moe_ffn_out, lanes: [truth, free], to: [dump, sums]}]\n"
      "sinks: {dump: {sink: npy, dir: dump}, sums: {sink: stats, file: sums.csv}}\n";
  write_text(folder / "c.yaml", gate_text("c", claims, captures));
  const auto under = [&](const std::string& locale, const std::string& arguments) {
    const Finished run = run_command("cd " + quoted(folder.str()) + " && LOCPATH=" + quoted(folder.str()) +
                                     " LC_ALL=" + locale + " " + tool() + " " + arguments);
    INFO(arguments << "\n" << run.err);
    CHECK((run.code == 0 || run.code == 1));
    return without_times(run.out + run.err);
  };
  const auto outputs = [&](const std::string& locale) {
    std::string all =
        under(locale, "check c.yaml") + under(locale, "plan c.yaml") + under(locale, "plan c.yaml --json");
    all += under(locale, "run c.yaml --overwrite --out out --junit junit.xml --github -v");
    all += under(locale, "run c.yaml --overwrite --out out --json -");
    for (const std::string file : {"junit.xml", "out/verdict.json", "out/sums.csv", "out/dump/manifest.json"})
      all += without_times(read_text(folder / file));
    return all;
  };
  const std::string expected = outputs("C");
  CHECK_THAT(expected, Catch::Matchers::Contains("1.5e-05") && Catch::Matchers::Contains("0.9999999999"));
  CHECK(outputs("de_DE.UTF-8") == expected);
}

}  // namespace moe_diag
