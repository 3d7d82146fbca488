// SPDX-License-Identifier: MIT
// Outputs of one call that would lie on or in each other are refused before anything is computed.
#include <filesystem>

#include "core/run/output_places.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/gate.hpp"

namespace moe_diag {
namespace {

namespace fs = std::filesystem;
using Catch::Matchers::Contains;

// A contract with two sinks, and what the commands that would feed them say.
struct TwoSinks {
  TemporaryFolder folder;

  void write(const std::string& name, const std::string& a, const std::string& b) const {
    write_text(
        folder / (name + ".yaml"),
        gate_text(name, held_claim,
                  "capture: [{stages: lm_head, lanes: free, to: [a, b]}]\nsinks: {a: " + a + ", b: " + b + "}\n"));
  }
  Finished call(const std::string& command) const {
    return run_command("cd " + quoted(folder.str()) + " && " + tool() + " " + command);
  }
  // Refused by all commands, which write nothing.
  void check_refused(const std::string& a, const std::string& b, const std::string& says) const {
    write("c", a, b);
    for (const std::string command : {"check", "plan", "run", "capture"}) {
      INFO(command << ' ' << a << ' ' << b);
      const Finished finished = call(command + " c.yaml");
      CHECK(finished.code == 2);
      CHECK_THAT(finished.err, Contains("c.yaml:") && Contains(says));
      CHECK_FALSE(fs::exists(folder / "moe-diag-out"));
    }
  }
};

}  // namespace

TEST_CASE("two sinks of a contract write to places apart") {
  const TwoSinks sinks;
  const std::string stats = "{sink: stats, file: x/s.json}";
  sinks.check_refused(stats, stats, "is where sink 'a'");
  sinks.check_refused(stats, "{sink: stats, file: ./x//s.json}", "is where sink 'a'");
  sinks.check_refused("{sink: npy, dir: x}", "{sink: npy, dir: x/}", "is where sink 'a'");
  sinks.check_refused("{sink: npy, dir: x}", "{sink: npy, dir: x/y}", "lies in");
  sinks.check_refused("{sink: npy, dir: x/y}", stats.substr(0, stats.find("/s")) + "}", "holds");
  sinks.check_refused("{sink: npy, dir: x}", stats, "lies in");
  sinks.check_refused("{sink: npy, dir: " + sinks.folder / "a/../b" + "}",
                      "{sink: npy, dir: " + sinks.folder / "b" + "}", "is where sink 'a'");
  sinks.write("right", "{sink: npy, dir: x}", "{sink: npy, dir: xy}");
  CHECK(sinks.call("run right.yaml --allow-untested '*'").code == 0);
  CHECK(sinks.call("check right.yaml").code == 0);
}

TEST_CASE("links are followed, also those to what is not there yet") {
  const TwoSinks sinks;
  fs::create_directory(sinks.folder / "real");
  fs::create_directory_symlink("real", sinks.folder / "link");
  fs::create_symlink("later", sinks.folder / "ahead");
  const auto npy = [&](const std::string& name) { return "{sink: npy, dir: " + sinks.folder / name + "}"; };
  sinks.check_refused(npy("real/d"), npy("link/d"), "is where sink 'a'");
  sinks.check_refused(npy("later"), npy("ahead/d"), "lies in");
  fs::create_symlink("round", sinks.folder / "round");
  CHECK_NOTHROW(resolved(sinks.folder / "round/x"));
}

TEST_CASE("the verdict, and the files of the command line, are apart from the sinks, too") {
  const TwoSinks sinks;
  sinks.write("c", "{sink: stats, file: verdict.json}", "{sink: npy, dir: d}");
  const Finished verdict = sinks.call("run c.yaml");
  CHECK(verdict.code == 2);
  CHECK_THAT(verdict.err, Contains("sink 'a'") && Contains("the verdict of c is written"));
  CHECK(sinks.call("check c.yaml").code == 2);
  sinks.write("c", "{sink: npy, dir: .}", "{sink: npy, dir: " + sinks.folder / "d" + "}");
  CHECK_THAT(sinks.call("run c.yaml").err, Contains("holds") && Contains("the verdict of c"));
  sinks.write("c", "{sink: stats, file: s.json}", "{sink: npy, dir: d}");
  fs::create_directory(sinks.folder / "out");
  write_text(sinks.folder / "out/s.json", "of an earlier run");
  const Finished junit = sinks.call("run c.yaml --out out --overwrite --junit out/s.json");
  CHECK(junit.code == 2);
  CHECK_THAT(junit.err, Contains("--junit"));
  CHECK(read_text(sinks.folder / "out/s.json") == "of an earlier run");
  CHECK(sinks.call("run c.yaml --out out --overwrite --json out/verdict.json").code == 2);
}

TEST_CASE("contracts of one call have places of their own, and of two calls they need not") {
  const TwoSinks sinks;
  const std::string shared = "{sink: npy, dir: " + sinks.folder / "d" + "}";
  sinks.write("a", shared, "{sink: npy, dir: x}");
  sinks.write("b", shared, "{sink: npy, dir: x}");
  for (const std::string command : {"check", "run"}) {
    const Finished both = sinks.call(command + " a.yaml b.yaml");
    CHECK(both.code == 2);
    CHECK_THAT(both.err, Contains("b.yaml:") && Contains("is where sink 'a' (a.yaml:"));
  }
  CHECK_FALSE(fs::exists(sinks.folder / "d"));
  CHECK(sinks.call("check a.yaml").code == 0);
  // With one folder for all, they are not apart any more.
  sinks.write("a", "{sink: npy, dir: x}", "{sink: npy, dir: y}");
  sinks.write("b", "{sink: npy, dir: x}", "{sink: npy, dir: y}");
  CHECK(sinks.call("check a.yaml b.yaml").code == 0);
}

}  // namespace moe_diag
