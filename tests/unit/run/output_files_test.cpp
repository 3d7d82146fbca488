// SPDX-License-Identifier: MIT
// Files of the user: what is read is never replaced, what is there only when it may be, and a link, a FIFO or a device
// stays what it is.
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/support/gate.hpp"

namespace moe_diag {
namespace {

namespace fs = std::filesystem;
using Catch::Matchers::Contains;

const std::string stats_capture =
    "capture:\n  - {stages: lm_head, lanes: free, to: [table]}\nsinks:\n  table: {sink: stats, file: table.json}\n";

// A folder with a contract, which is the working directory.
struct Place {
  TemporaryFolder folder;

  explicit Place(const std::string& text = gate_text("a", held_claim)) { write_text(folder / "a.yaml", text); }

  std::string operator/(std::string_view name) const { return folder / name; }
  Finished shell(const std::string& command) const {
    return run_command("cd " + quoted(folder.str()) + " && " + command);
  }
  Finished tool(const std::string& arguments) const { return shell(moe_diag::tool() + " " + arguments); }
  Finished run(const std::string& more) const { return tool("run a.yaml " + more); }
  // What a reader of the FIFO gets while the command writes to it.
  std::string through(const std::string& fifo, const std::string& command) const {
    const Finished done = shell("mkfifo " + fifo + " && { timeout 60 cat " + fifo + " > got & } && " +
                                moe_diag::tool() + " " + command + " && wait");
    INFO(done.err);
    CHECK(done.code == 0);
    CHECK(fs::is_fifo(folder / fifo));
    return read_text(folder / "got");
  }
  std::size_t entries() const {
    return static_cast<std::size_t>(std::distance(fs::directory_iterator(folder.str()), {}));
  }
};

bool is_verdict(const std::string& text) {
  return nlohmann::json::parse(text, nullptr, false).value("schema_version", 0) == 1;
}

void refuses(const Finished& done, const std::vector<std::string>& words) {
  INFO(done.out << done.err);
  CHECK(done.code == 2);
  for (const std::string& word : words) CHECK_THAT(done.err, Contains(word));
}

}  // namespace

TEST_CASE("an output file is replaced with --overwrite only, and no other file beside it") {
  const Place place;
  REQUIRE(place.run("--out out --json v.json --junit j.xml").code == 0);
  write_text(place / "v.json.partial", "mine");
  const std::string junit = read_text(place / "j.xml");
  refuses(place.run("--out out2 --json v.json"), {"v.json: is there already", "--overwrite", "--json"});
  refuses(place.run("--out out2 --junit j.xml"), {"j.xml: is there already", "--overwrite", "--junit"});
  CHECK(read_text(place / "j.xml") == junit);
  CHECK_FALSE(fs::exists(place / "out2"));
  write_text(place / "v.json", "old");
  CHECK(place.run("--out out --json v.json --junit j.xml --overwrite").code == 0);
  CHECK(is_verdict(read_text(place / "v.json")));
  CHECK(read_text(place / "v.json.partial") == "mine");
  CHECK(place.entries() == 5);
}

TEST_CASE("one signal ends the wait for somebody who reads a FIFO") {
  const Place place;
  const Finished done = place.shell("mkfifo json && { timeout 100 env " + moe_diag::tool() +
                                    " run a.yaml --out o --json json & } && until [ -e o/verdict.json ]; do sleep 0.1; "
                                    "done && sleep 2 && kill $! && wait $!");
  INFO(done.out << done.err);
  CHECK(done.code == 4);
  CHECK_THAT(done.err, Contains("json: cannot open for writing: Interrupted"));
}

TEST_CASE("what HDF5 refuses is told in one line") {
  const Place place(gate_text("a", held_claim,
                              "capture: [{stages: lm_head, lanes: truth, to: dump}]\n"
                              "sinks: {dump: {sink: hdf5, file: dump.h5}}\n"));
  write_text(place / "dump.h5", "mine");
  const Finished done = place.run("--out .");
  refuses(done, {"dump.h5: not a capture of moe-diag"});
  CHECK_THAT(done.err, !Contains("HDF5:"));
  CHECK(read_text(place / "dump.h5") == "mine");
}

TEST_CASE("a FIFO is written through, and stays") {
  const Place place;
  CHECK(is_verdict(place.through("json", "run a.yaml --out o1 --json json")));
  CHECK_THAT(place.through("junit", "run a.yaml --out o2 --junit junit"), Contains("<testsuite"));
  CHECK(place.through("model", "synth model --seed 7").size() > 1'000'000);
  fs::create_symlink("link_end", place / "link");
  CHECK(is_verdict(place.through("link_end", "run a.yaml --out o3 --json link")));
  CHECK(fs::is_symlink(place / "link"));
  write_text(place / "s.yaml", gate_text("s", held_claim, stats_capture));
  fs::create_directory(place / "o5");
  CHECK_THAT(place.through("o5/table.json", "run s.yaml --out o5"), Contains("moe-diag stats"));
}

TEST_CASE("the step's summary goes through a FIFO and along a link, and is added to") {
  const Place place;
  const std::string github = " " + moe_diag::tool() + " run a.yaml --github --out ";
  write_text(place / "end.md", "before\n");
  fs::create_symlink("end.md", place / "link.md");
  CHECK(place.shell("GITHUB_STEP_SUMMARY=link.md" + github + "o1").code == 0);
  CHECK_THAT(read_text(place / "end.md"), Contains("before\n### HELD"));
  CHECK(fs::is_symlink(place / "link.md"));
  CHECK(place.shell("mkfifo f && { cat f > got & } && GITHUB_STEP_SUMMARY=f" + github + "o2 && wait").code == 0);
  CHECK_THAT(read_text(place / "got"), Contains("### HELD"));
  const std::string contract = read_text(place / "a.yaml");
  refuses(place.shell("GITHUB_STEP_SUMMARY=./a.yaml" + github + "o3"), {"GITHUB_STEP_SUMMARY", "the contract"});
  CHECK(read_text(place / "a.yaml") == contract);
}

TEST_CASE("a device is written through, and a full one is told, with exit 4") {
  const Place place;
  for (const std::string& option : {std::string("--json"), std::string("--junit")}) {
    CHECK(place.run("--out o --overwrite " + option + " /dev/null").code == 0);
    const Finished full = place.run("--out o --overwrite " + option + " /dev/full");
    CHECK(full.code == 4);
    CHECK_THAT(full.err, Contains("/dev/full: cannot write: No space left"));
  }
  CHECK(place.run("--out o --overwrite --json /dev/null --junit /dev/null").code == 0);
  CHECK(place.tool("synth /dev/full").code == 4);
  CHECK(fs::is_character_file("/dev/null"));
  CHECK(fs::is_character_file("/dev/full"));
  CHECK(place.entries() == 2);
}

TEST_CASE("standard output by name takes what comes after the report, be it a pipe or a file") {
  const Place place;
  const Finished piped = place.shell(moe_diag::tool() + " run a.yaml --out o1 --json /dev/stdout | cat");
  CHECK_THAT(piped.out, Catch::Matchers::StartsWith("HELD"));
  CHECK(is_verdict(piped.out.substr(piped.out.find("\n{"))));
  CHECK(place.run("--out o2 --json /dev/fd/1 > all").code == 0);
  const std::string all = read_text(place / "all");
  CHECK_THAT(all, Catch::Matchers::StartsWith("HELD"));
  CHECK(is_verdict(all.substr(all.find("\n{"))));
  refuses(place.run("--out o3 --overwrite --json all > all"), {"all", "that this command prints to"});
  refuses(place.run("--out o3 --json /dev/stdout --junit /dev/stdout"), {"by the same call"});
}

TEST_CASE("a symbolic link is followed and stays, whether or not its target is there") {
  const Place place;
  fs::create_directory(place / "else");
  fs::create_symlink("else/v.json", place / "link");
  fs::create_symlink("link", place / "link2");
  CHECK(place.run("--out o1 --json link2").code == 0);
  CHECK(is_verdict(read_text(place / "else/v.json")));
  refuses(place.run("--out o2 --json link2"), {"link2: is there already"});
  write_text(place / "else/v.json", "old");
  CHECK(place.run("--out o1 --overwrite --json link2").code == 0);
  CHECK(is_verdict(read_text(place / "else/v.json")));
  CHECK(fs::is_symlink(place / "link"));
  CHECK(fs::is_symlink(place / "link2"));
  CHECK(std::distance(fs::directory_iterator(place / "else"), {}) == 1);

  fs::create_symlink("else/model.gguf", place / "m.gguf");
  CHECK(place.tool("synth m.gguf").code == 0);
  CHECK(fs::is_symlink(place / "m.gguf"));
  CHECK(fs::is_regular_file(place / "else/model.gguf"));
  refuses(place.tool("synth m.gguf"), {"m.gguf: is there already"});

  fs::create_symlink("else/out", place / "out");
  CHECK(place.run("--out out").code == 0);
  CHECK(fs::is_symlink(place / "out"));
  CHECK(is_verdict(read_text(place / "else/out/verdict.json")));
  fs::create_symlink("loop", place / "loop");
  CHECK(place.run("--out o3 --json loop").code == 4);
}

TEST_CASE("what a call reads is never replaced, by whatever name") {
  const std::string claims = held_claim +
                             "  - {id: SAME, claim: s, lane: free, stage: lm_head, metric: identical, "
                             "to: {digest: d.json}, equals: 1}\n";
  std::string text = gate_text("a", claims, stats_capture, "{gguf: m.gguf}");
  text.replace(text.find("tokens: [3, 141, 59]"), 20, "tokens_file: ids.jsonl");
  const Place place(text);
  write_text(place / "ids.jsonl", "[3, 141, 59]\n");
  REQUIRE(place.tool("synth m.gguf --seed 7").code == 0);
  REQUIRE(place.tool("digest a.yaml --out d.json").code == 0);
  fs::create_directory(place / "out");
  fs::create_symlink("../a.yaml", place / "out/link");
  fs::create_hard_link(place / "a.yaml", place / "hard");
  std::vector<std::string> before;
  const std::vector<std::string> inputs{"a.yaml", "m.gguf", "ids.jsonl", "d.json"};
  for (const std::string& input : inputs) before.push_back(read_text(place / input));

  const std::vector<std::string> words{"the contract", "the model", "the tokens", "the digests"};
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    for (const std::string option : {"--json", "--junit"})
      refuses(place.run("--out out --overwrite " + option + " " + inputs[i]), {option, words[i], inputs[i]});
    refuses(place.run("--out out --overwrite --set sinks.table.file=" + (place / inputs[i]) +
                      " --set sinks.table.format=json"),
            {"sink 'table'", words[i]});
  }
  for (const std::string name : {"./a.yaml", "out/../a.yaml", "out/link", "hard"})
    refuses(place.run("--out out --overwrite --json " + name), {"the contract", name});
  for (const std::string name : {"a.yaml", "m.gguf", "ids.jsonl"})
    refuses(place.tool("digest a.yaml --overwrite --out " + name), {"--out", name});
  fs::create_symlink("../m.gguf", place / "out/verdict.json");
  refuses(place.run("--out out --overwrite"), {"the verdict", "the model"});
  write_text(place / "b.yaml", gate_text("b", held_claim));
  refuses(place.tool("run a.yaml b.yaml --out two --overwrite --json b.yaml"), {"b.yaml", "the contract"});
  for (std::size_t i = 0; i < inputs.size(); ++i) CHECK(read_text(place / inputs[i]) == before[i]);
  CHECK(place.tool("digest a.yaml --out d.json --overwrite").code == 0);  // it is written there, and not read
}

TEST_CASE("two outputs of one call are two files") {
  const Place place(gate_text("a", held_claim, stats_capture));
  fs::create_directory(place / "out");
  refuses(place.run("--out out --json x --junit ./x"), {"--json", "--junit", "a place of its own"});
  refuses(place.run("--out out --json out/verdict.json"), {"--json", "the verdict"});
  refuses(place.run("--out out --json out/table.json"), {"sink 'table'", "--json"});
  CHECK(fs::is_empty(place / "out"));
}

TEST_CASE("a folder is no file and a file no folder, and nothing is computed") {
  const Place place;
  write_text(place / "file", "mine");
  refuses(place.run("--out file"), {"file: is no folder", "--out"});
  fs::create_directory(place / "sub");
  refuses(place.run("--out o --json sub"), {"is a folder"});
  refuses(place.run("--out o --json ."), {"--json", "o/verdict.json"});
  refuses(place.run("--out o --junit no/such.xml"), {"there is no folder no", "--junit"});
  CHECK(place.shell("mkfifo fifo").code == 0);
  refuses(place.run("--out fifo"), {"fifo: is no folder"});
  CHECK(fs::is_fifo(place / "fifo"));
  CHECK(read_text(place / "file") == "mine");
  CHECK_FALSE(fs::exists(place / "o"));
}

TEST_CASE("the working folder can be the output folder") {
  const Place place(gate_text("a", held_claim, stats_capture));
  CHECK(place.run("--out .").code == 0);
  CHECK(is_verdict(read_text(place / "verdict.json")));
  CHECK(fs::exists(place / "table.json"));
  refuses(place.run("--out ."), {"verdict.json: is there already"});
  CHECK(place.run("--out ./ --overwrite").code == 0);
}

TEST_CASE("in the default folder a run replaces what an earlier one left, and nothing else") {
  const Place place(gate_text("a", held_claim, stats_capture));
  const std::string table = place / "moe-diag-out/a/table.json", verdict = place / "moe-diag-out/a/verdict.json";
  REQUIRE(place.run("").code == 0);
  CHECK(place.run("").code == 0);
  CHECK(place.run("--set prompts.short.tokens='[3, 141]'").code == 0);
  CHECK_THAT(read_text(table), Contains("\"rows\":2"));

  SECTION("a file that was changed since stays") {
    ::usleep(20'000);
    write_text(table, "mine");
    refuses(place.run(""), {"table.json: is there already"});
    CHECK(read_text(table) == "mine");
    CHECK(place.run("--overwrite").code == 0);
  }
  SECTION("so does one that no run wrote") {
    write_text(place / "moe-diag-out/a/other.csv", "mine");
    refuses(place.run("--set sinks.table.file=other.csv"), {"other.csv: is there already"});
    CHECK(read_text(place / "moe-diag-out/a/other.csv") == "mine");
  }
  SECTION("and what is no verdict of this contract") {
    for (const std::string& text : {std::string("mine"), std::string("{}"), std::string()}) {
      write_text(verdict, text);
      refuses(place.run(""), {"verdict.json: is there already"});
      CHECK(read_text(verdict) == text);
    }
  }
  SECTION("a folder that was named is the user's own") {
    refuses(place.run("--out moe-diag-out/a"), {"verdict.json: is there already", "--overwrite"});
  }
}

TEST_CASE("a case goes into an empty folder, along a link, and never takes other files with it") {
  const Place place(gate_text("a", false_claim));
  REQUIRE(place.run("--out out --inject '{inject: scale, stage: moe_ffn_out, layer: 1, lane: free}'").code == 1);
  const std::string repro = "repro out/verdict.json --out ";
  fs::create_directory(place / "empty");
  CHECK(place.shell("cd empty && " + moe_diag::tool() + " repro ../out/verdict.json --out .").code == 0);
  CHECK(fs::exists(place / "empty/contract.yaml"));
  CHECK(fs::exists(place / "empty/inputs"));
  CHECK_FALSE(std::any_of(fs::directory_iterator(place / "empty"), fs::directory_iterator(),
                          [](const auto& entry) { return entry.path().filename().string().front() == '.'; }));
  fs::create_symlink("case", place / "link");
  CHECK(place.tool(repro + "link").code == 0);
  CHECK(place.tool(repro + "link --overwrite").code == 0);
  CHECK(fs::is_symlink(place / "link"));
  CHECK(fs::exists(place / "case/contract.yaml"));
  write_text(place / "case/inputs/notes.txt", "mine");
  refuses(place.tool(repro + "case --overwrite"), {"notes.txt", "no part of a case"});
  CHECK(read_text(place / "case/inputs/notes.txt") == "mine");
  refuses(place.tool(repro + "out --overwrite"), {"the verdict"});
  refuses(place.tool(repro + "a.yaml --overwrite"), {"the contract"});
}

}  // namespace moe_diag
