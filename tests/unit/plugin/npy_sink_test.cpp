// SPDX-License-Identifier: MIT
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <functional>
#include <set>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "tests/support/catch.hpp"
#include "tests/support/small_disk.hpp"
#include "tests/support/stages.hpp"
#include "tests/unit/plugin/sink_support.hpp"

namespace moe_diag {
namespace {

using Catch::Matchers::Contains;
namespace fs = std::filesystem;

void capture(const RunInfo& run, const std::vector<MadeEvent>& events) {
  deliver(*loaded_sink("npy", {{"dir", "dump"}}), run, events);
}

// The manifest of a capture whose digests were all found right.
nlohmann::json checked_manifest(const std::string& folder) {
  auto manifest = nlohmann::json::parse(read_text(folder + "/manifest.json"));
  REQUIRE(manifest["tensors"].is_array());
  for (const auto& tensor : manifest["tensors"]) {
    const std::string bytes = read_text(folder + "/" + tensor["file"].get<std::string>());
    std::array<char, 17> digest{};
    std::snprintf(digest.data(), digest.size(), "%016llx",
                  static_cast<unsigned long long>(XXH3_64bits(bytes.data(), bytes.size())));
    INFO(tensor["file"]);
    CHECK(tensor["xxh3"] == digest.data());
  }
  return manifest;
}

TEST_CASE("numpy reads every array of a capture and finds what was delivered") {
  TemporaryFolder folder;
  MadeRun run(folder / "out");
  const auto events = made_events();
  capture(run.info, events);
  CHECK(run_python("read_capture.py", {run.out + "/dump", write_expected(folder / "expected", run, events)}) == "ok");
  CHECK_FALSE(fs::exists(run.out + "/dump/incomplete"));
  CHECK_FALSE(fs::exists(run.out + "/dump/manifest.json.partial"));
}

TEST_CASE("numpy reads values of 16 bits, those of bf16 as pairs of bytes") {
  TemporaryFolder folder;
  MadeRun run(folder / "out");
  const auto events = made_16_bit_events();
  capture(run.info, events);
  const std::string expected = write_expected(folder / "expected", run, events);
  CHECK(run_python("read_capture.py", {run.out + "/dump", expected}) == "ok");
  CHECK(run_python("read_16_bits.py", {run.out + "/dump", expected, modules}) == "ok");
  checked_manifest(run.out + "/dump");
}

TEST_CASE("the check of a capture can fail") {
  TemporaryFolder folder;
  MadeRun run(folder / "out");
  auto events = made_events();
  capture(run.info, events);
  events[3].bytes[5] ^= std::byte{1};
  CHECK_THAT(run_python("read_capture.py", {run.out + "/dump", write_expected(folder / "expected", run, events)}),
             Contains("bytes differ"));
}

TEST_CASE("the manifest says what was run, and digests the files") {
  TemporaryFolder folder;
  MadeRun run(folder.str());
  capture(run.info, made_events());
  const auto manifest = checked_manifest(folder / "dump");
  CHECK(manifest["format"] == "moe-diag capture");
  CHECK(manifest["format_version"] == 1);
  CHECK(manifest["tool_version"] == "0.1.0");
  CHECK(manifest["contract"] == nlohmann::json({{"id", "made"}, {"version", "1.0.0"}}));
  CHECK(manifest["model"]["source"] == "synthetic: tiny, seed 7");
  CHECK(manifest["model"]["bytes"] == 4096);
  CHECK(manifest["model"]["digest"] == "0123456789abcdef");
  CHECK(manifest["model"]["config"]["layers"] == 12);
  CHECK(manifest["prompts"][1]["id"] == "long-one");
  CHECK(manifest["prompts"][1]["tokens"] == run.tokens);
  CHECK(manifest["lanes"][0] == nlohmann::json({{"name", "truth"},
                                                {"backend", "cpu"},
                                                {"numerics", "f64"},
                                                {"device", "cpu, 2 threads"},
                                                {"instruction_set", "scalar"},
                                                {"values", "f64"}}));
}

TEST_CASE("files lie where the layout says, tensors are listed in forward order") {
  TemporaryFolder folder;
  MadeRun run(folder.str(), 101);
  std::vector<MadeEvent> events;
  for (const Site site : {Site{stages::lm_head, -1}, Site{stages::attn_norm, 100}, Site{stages::moe_ffn_out, 7},
                          Site{stages::embedding, -1}, Site{stages::attn_norm, 7}})
    events.push_back(made_event(0, 1, site, {4}, DType::f32, {3}, 1));
  capture(run.info, events);
  const auto manifest = checked_manifest(folder / "dump");
  std::vector<std::string> files;
  for (const auto& tensor : manifest["tensors"]) files.push_back(tensor["file"]);
  CHECK(files == std::vector<std::string>{"short/fast/embedding.npy", "short/fast/layer_007/attn_norm.npy",
                                          "short/fast/layer_007/moe_ffn_out.npy", "short/fast/layer_100/attn_norm.npy",
                                          "short/fast/lm_head.npy"});
}

TEST_CASE("two layers still have two digits; a header is 128 bytes") {
  TemporaryFolder folder;
  MadeRun run(folder.str(), 2);
  capture(run.info, {made_event(0, 0, {stages::attn_norm, 1}, {0}, DType::f64, {5}, 1)});
  CHECK(fs::file_size(folder / "dump/short/truth/layer_01/attn_norm.npy") == 128 + 40);
}

TEST_CASE("rows that do not fit those before them are refused") {
  TemporaryFolder folder;
  MadeRun run(folder.str());
  const Site site{stages::attn_norm, 3};
  MadeEvent first = made_event(0, 0, site, {2, 3}, DType::f64, {5}, 1);
  first.total = 3;
  const auto second = [&](const MadeEvent& event) {
    const auto sink = loaded_sink("npy", {{"dir", std::to_string(std::rand())}});
    sink->open(run.info);
    sink->consume(first.view());
    return error_of([&] { sink->consume(event.view()); });
  };
  CHECK(second(made_event(0, 0, site, {4}, DType::f64, {5}, 1)) == "no error");
  CHECK_THAT(second(made_event(0, 0, site, {4}, DType::f64, {6}, 1)),
             Contains("holds rows of f64 2x5, more came as f64 1x6"));
  CHECK_THAT(second(made_event(0, 0, site, {4, 5}, DType::f64, {5}, 1)), Contains("3 rows were announced, 4 came"));
  CHECK_THAT(second(made_event(0, 0, site, {4}, DType::f32, {5}, 1)), Contains("f32 1x5"));
  CHECK_THAT(second(made_event(0, 0, site, {3}, DType::f64, {5}, 1)), Contains("position 3 came after position 3"));
}

TEST_CASE("an event that contradicts the run is an error") {
  TemporaryFolder folder;
  MadeRun run(folder.str());
  const auto sink = loaded_sink("npy", {{"dir", "dump"}});
  sink->open(run.info);
  const auto with = [&](const std::function<void(MadeEvent&)>& change) {
    MadeEvent event = made_event(0, 0, {stages::attn_norm, 3}, {2, 3}, DType::f64, {5}, 1);
    change(event);
    return error_of([&] { sink->consume(event.view()); });
  };
  CHECK_THAT(with([](MadeEvent& e) { e.prompt = 2; }), Contains("prompt 2 of 2"));
  CHECK_THAT(with([](MadeEvent& e) { e.lane = -1; }), Contains("lane -1 of 2"));
  CHECK_THAT(with([](MadeEvent& e) { e.site.layer = 12; }), Contains("attn_norm of layer 12, the model has 12"));
  CHECK_THAT(with([](MadeEvent& e) { e.positions.pop_back(); }), Contains("1 positions, 2 rows"));
  CHECK(with([](MadeEvent&) {}) == "no error");
}

TEST_CASE("a capture that is there is refused, and replaced whole with overwrite") {
  TemporaryFolder folder;
  MadeRun run(folder.str());
  const auto open = [&](bool overwrite) {
    run.info.overwrite = overwrite;
    return error_of([&] { loaded_sink("npy", {{"dir", "dump"}})->open(run.info); });
  };
  capture(run.info, made_events());
  const std::string before = read_text(folder / "dump/manifest.json");
  CHECK_THAT(open(false), Contains(folder / "dump" + ": holds a complete capture"));
  CHECK_THAT(open(false), Contains("--overwrite"));
  CHECK(read_text(folder / "dump/manifest.json") == before);

  run.info.overwrite = true;
  const std::vector<MadeEvent> other = {made_event(1, 1, {stages::lm_head, -1}, {9}, DType::f32, {4}, 5)};
  capture(run.info, other);
  CHECK(run_python("read_capture.py", {folder / "dump", write_expected(folder / "expected", run, other)}) == "ok");
  CHECK_FALSE(fs::exists(folder / "dump/short"));

  CHECK(open(true) == "no error");  // and never closed: incomplete from here on
  CHECK_FALSE(fs::exists(folder / "dump/manifest.json"));
  CHECK_THAT(read_text(folder / "dump/incomplete"), Contains("not complete"));
  CHECK_THAT(open(false), Contains("an incomplete capture"));
  CHECK(open(true) == "no error");
}

TEST_CASE("a complete capture of another architecture is replaced, too") {
  TemporaryFolder folder;
  MadeRun run(folder.str());
  capture(run.info, {made_event(0, 0, {stages::q_norm, 1}, {9}, DType::f32, {4, 6}, 5)});
  run.info.model.config.stages = qwen2moe.stages;
  run.info.overwrite = false;
  const auto open = [&] { return error_of([&] { loaded_sink("npy", {{"dir", "dump"}})->open(run.info); }); };
  CHECK_THAT(open(), Contains("holds a complete capture"));
  run.info.overwrite = true;
  CHECK(open() == "no error");
  CHECK_FALSE(fs::exists(folder / "dump/short"));
}

TEST_CASE("files of somebody else are never removed") {
  const std::vector<std::string> foreign = {"notes.txt",
                                            "short/notes.txt",
                                            "short/truth/notes.npy",
                                            "short/truth/attn_norm.npy",
                                            "short/truth/layer_03/lm_head.npy",
                                            "short/truth/layer_03/deeper/attn_norm.npy",
                                            "short/lm_head.npy"};
  for (const std::string& name : foreign) {
    INFO(name);
    TemporaryFolder folder;
    MadeRun run(folder.str());
    capture(run.info, made_events());
    write_text(folder / "dump/" + name, "mine");
    run.info.overwrite = true;
    const std::string error = error_of([&] { loaded_sink("npy", {{"dir", "dump"}})->open(run.info); });
    CHECK_THAT(error, Contains("not part of a capture"));
    CHECK(read_text(folder / "dump/" + name) == "mine");
    CHECK_FALSE(checked_manifest(folder / "dump")["tensors"].empty());
  }
}

TEST_CASE("a folder that only looks like a capture is not cleared") {
  const auto overwrite = [](const std::string& name, const std::string& text) {
    TemporaryFolder folder;
    MadeRun run(folder.str());
    run.info.overwrite = true;
    write_text(folder / "dump/" + name, text);
    const std::string error = error_of([&] { loaded_sink("npy", {{"dir", "dump"}})->open(run.info); });
    CHECK(read_text(folder / "dump/" + name) == text);
    return error;
  };
  CHECK_THAT(overwrite("manifest.json", R"({"name": "my web page"})"),
             Contains("manifest.json: not part of a capture"));
  CHECK_THAT(overwrite("manifest.json", "{"), Contains("manifest.json: not part of a capture"));
  CHECK_THAT(overwrite("incomplete", "a todo list"), Contains("incomplete: not part of a capture"));
  CHECK_THAT(overwrite("short/truth/lm_head.npy", "x"), Contains("lm_head.npy: not part of a capture"));
}

TEST_CASE("a link in a capture is foreign: what it points to stays") {
  TemporaryFolder folder;
  MadeRun run(folder.str());
  capture(run.info, made_events());
  write_text(folder / "elsewhere/lm_head.npy", "mine");
  fs::create_directory_symlink(folder / "elsewhere", folder / "dump/short/linked");
  run.info.overwrite = true;
  CHECK_THAT(error_of([&] { loaded_sink("npy", {{"dir", "dump"}})->open(run.info); }), Contains("linked: not part"));
  CHECK(read_text(folder / "elsewhere/lm_head.npy") == "mine");
}

TEST_CASE("options and names that would write elsewhere are refused") {
  TemporaryFolder folder;
  MadeRun run(folder.str());
  CHECK_THAT(error_of([] { loaded_sink("npy", {}); }), Contains("made.yaml:1:1: sink 'it': dir: missing"));
  CHECK_THAT(error_of([] { loaded_sink("npy", {{"dir", ""}}); }), Contains("made.yaml:2:3"));
  CHECK_THAT(error_of([] { loaded_sink("npy", {{"dir", "a/../../b"}}); }), Contains("below --out"));
  const auto sink = loaded_sink("npy", {{"dir", folder / "absolute"}});
  for (const char* id : {"../x", "a/b", "", ".", ".hidden", "a\nb", "manifest.json", "incomplete"}) {
    INFO(id);
    run.prompts[0].id = id;
    CHECK_THAT(error_of([&] { sink->open(run.info); }), Contains("prompt '"));
  }
  CHECK_FALSE(fs::exists(folder / "absolute"));
  run.prompts[0].id = "fine-1.0";
  CHECK(error_of([&] { sink->open(run.info); }) == "no error");
  CHECK(fs::exists(folder / "absolute/incomplete"));
}

TEST_CASE("what cannot be written is named with reason and remedy") {
  TemporaryFolder folder;
  write_text(folder / "file", "x");
  MadeRun run(folder / "file");
  CHECK_THAT(error_of([&] {
               loaded_sink("npy", {{"dir", "dump"}})->open(run.info);
             }),
             Contains(folder / "file/dump" + ": cannot be written: Not a directory; write elsewhere (--out)"));
}

TEST_CASE("a disk that is full ends with the file's name and leaves no manifest") {
  TemporaryFolder folder;
  MadeRun run(folder.str());
  std::string error;
  {
    const LargestFile limit(4096);
    error = error_of([&] {
      capture(run.info, {made_event(0, 0, {stages::embedding, -1}, {0, 1}, DType::f64, {10}, 1),
                         made_event(0, 0, {stages::lm_head, -1}, {0, 1}, DType::f64, {1000}, 1)});
    });
  }
  CHECK_THAT(error, Contains(folder / "dump/short/truth/lm_head.npy" + ": cannot write: File too large"));
  CHECK_THAT(error, Contains("1 of 2 arrays are whole and kept in " + (folder / "dump") + ", which has no manifest"));
  CHECK(fs::exists(folder / "dump/short/truth/embedding.npy"));
  CHECK_FALSE(fs::exists(folder / "dump/short/truth/lm_head.npy"));
  CHECK(fs::exists(folder / "dump/incomplete"));
  CHECK_FALSE(fs::exists(folder / "dump/manifest.json"));
}

TEST_CASE("rows that find no room leave the array as it was before them") {
  TemporaryFolder folder;
  MadeRun run(folder.str());
  const Site site{stages::moe_ffn_out, 1};
  MadeEvent first = made_event(0, 0, site, {0, 1}, DType::f64, {100}, 1);
  first.total = 4;
  const auto sink = loaded_sink("npy", {{"dir", "dump"}});
  sink->open(run.info);
  sink->consume(first.view());
  const std::string file = folder / "dump/short/truth/layer_01/moe_ffn_out.npy", before = read_text(file);
  {
    const LargestFile limit(2500);
    CHECK_THAT(error_of([&] {
                 sink->consume(made_event(0, 0, site, {2, 3}, DType::f64, {100}, 2).view());
               }),
               Contains("0 of 1 arrays are whole"));
  }
  CHECK(read_text(file) == before);
}

// Runs a capture in a child that is killed after it has reported `steps` calls: it waits there to be killed, or, given
// `microseconds`, goes on and is killed so much later.
void killed_capture(const MadeRun& run, const std::vector<MadeEvent>& events, std::size_t steps,
                    useconds_t microseconds) {
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    std::size_t calls = 0;
    const auto report = [&] {
      (void)!::write(ends[1], "x", 1);
      if (++calls == steps && microseconds == 0) ::pause();
    };
    const auto sink = loaded_sink("npy", {{"dir", "dump"}});
    sink->open(run.info);
    report();
    for (const MadeEvent& event : events) {
      sink->consume(event.view());
      report();
    }
    sink->close();
    ::pause();
  }
  char byte = 0;
  for (std::size_t i = 0; i < steps; ++i) REQUIRE(::read(ends[0], &byte, 1) == 1);
  if (microseconds > 0) ::usleep(microseconds);
  ::kill(child, SIGKILL);
  int status = 0;
  ::waitpid(child, &status, 0);
  CHECK(WIFSIGNALED(status));
  ::close(ends[0]);
  ::close(ends[1]);
}

TEST_CASE("a killed capture has no manifest, says so and can be overwritten") {
  const auto events = made_events();
  loaded_sink("npy", {{"dir", "dump"}});  // loaded once, before any child
  for (const std::size_t steps : {std::size_t{1}, std::size_t{2}, std::size_t{30}, events.size()}) {
    INFO(steps);
    TemporaryFolder folder;
    MadeRun run(folder.str());
    killed_capture(run, events, steps, 0);
    CHECK_FALSE(fs::exists(folder / "dump/manifest.json"));
    CHECK(fs::exists(folder / "dump/incomplete"));
    CHECK_THAT(error_of([&] { capture(run.info, events); }), Contains("an incomplete capture"));
    run.info.overwrite = true;
    capture(run.info, events);
    CHECK(checked_manifest(folder / "dump")["tensors"].size() > 30);
  }
}

TEST_CASE("killed at any moment of close, a manifest that is there is whole") {
  const auto events = made_events();
  loaded_sink("npy", {{"dir", "dump"}});
  std::set<bool> seen;
  for (const useconds_t delay : {1, 50, 100, 200, 400, 800, 1600, 3200, 100000}) {
    TemporaryFolder folder;
    MadeRun run(folder.str());
    killed_capture(run, events, events.size() + 1, delay);
    const bool complete = fs::exists(folder / "dump/manifest.json");
    seen.insert(complete);
    if (complete)
      CHECK(run_python("read_capture.py", {folder / "dump", write_expected(folder / "expected", run, events)})
                .find("bytes differ") == std::string::npos);
    else
      CHECK(fs::exists(folder / "dump/incomplete"));
    if (complete) CHECK(checked_manifest(folder / "dump")["tensors"].size() > 30);
  }
  CHECK_FALSE(seen.empty());
}

}  // namespace
}  // namespace moe_diag
