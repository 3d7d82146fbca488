// SPDX-License-Identifier: MIT
#include <tuple>

#include "core/api/npy.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/process.hpp"
#include "tests/support/small_disk.hpp"
#include "tests/support/stages.hpp"
#include "tests/unit/plugin/sink_support.hpp"

namespace moe_diag {
namespace {

using Catch::Matchers::Contains;
namespace fs = std::filesystem;

const OptionList plain = {{"file", "made.h5"}};

void capture(const RunInfo& run, const std::vector<MadeEvent>& events, const OptionList& options = plain) {
  deliver(*loaded_sink("hdf5", options), run, events);
}

// What h5py finds wrong: "ok" for nothing.
std::string read_back(const TemporaryFolder& folder, const MadeRun& run, const std::vector<MadeEvent>& events) {
  return run_python("read_hdf5.py", {folder / "made.h5", write_expected(folder / "expected", run, events)});
}

std::string dumped(const std::string& options, const std::string& file) {
  const Finished tool = run_command(options + " " + quoted(file));
  INFO(tool.err << "hdf5-tools is on the list of cmake/bootstrap.sh");
  REQUIRE(tool.code == 0);
  return tool.out;
}

TEST_CASE("h5py reads every array of an HDF5 capture, however it is stored, and finds what was delivered") {
  for (const OptionList& options :
       std::vector<OptionList>{plain,
                               {{"file", "made.h5"}, {"chunk", "3"}},
                               {{"file", "made.h5"}, {"chunk", "1"}, {"compress", "4"}},
                               {{"file", "made.h5"}, {"chunk", "1000"}, {"compress", "9"}}}) {
    TemporaryFolder folder;
    MadeRun run(folder.str());
    const auto events = made_events();
    capture(run.info, events, options);
    deliver(*loaded_sink("npy", {{"dir", "dump"}}), run.info, events);
    INFO(options.size());
    CHECK(run_python("read_hdf5.py",
                     {folder / "made.h5", write_expected(folder / "expected", run, events), folder / "dump"}) == "ok");
    CHECK_FALSE(fs::exists(folder / "made.h5.partial"));
  }
}

TEST_CASE("h5py reads values of 16 bits, those of bf16 as float32") {
  TemporaryFolder folder;
  MadeRun run(folder.str());
  const auto events = made_16_bit_events();
  capture(run.info, events, {{"file", "made.h5"}, {"chunk", "3"}, {"compress", "4"}});
  CHECK(read_back(folder, run, events) == "ok");
  CHECK(run_python("read_16_bits.py",
                   {folder / "made.h5", write_expected(folder / "expected", run, events), modules}) == "ok");
}

TEST_CASE("the check of an HDF5 capture can fail") {
  TemporaryFolder folder;
  MadeRun run(folder.str());
  auto events = made_events();
  capture(run.info, events);
  events[3].bytes[5] ^= std::byte{1};
  CHECK_THAT(read_back(folder, run, events), Contains("bytes differ"));
}

TEST_CASE("h5dump and h5ls see the layout: contiguous unless chunks are asked for") {
  TemporaryFolder folder;
  MadeRun run(folder.str());
  capture(run.info, made_events());
  CHECK_THAT(dumped("h5ls -r", folder / "made.h5"),
             Contains("/short/truth/layer_03/moe_expert_out Dataset {6, 2, 33}") &&
                 Contains("/long-one/fast/lm_head") && Contains("Dataset {2, 3001}"));
  const std::string array = "/short/fast/layer_11/moe_ffn_out";
  CHECK_THAT(dumped("h5dump -p -H -d " + array, folder / "made.h5"),
             Contains("CONTIGUOUS") && Contains("H5T_IEEE_F32LE") && Contains("ATTRIBUTE \"positions\"") &&
                 !Contains("DEFLATE"));
  CHECK_THAT(dumped("h5dump -N complete", folder / "made.h5"), Contains("(0): 1"));
  fs::remove(folder / "made.h5");
  capture(run.info, made_events(), {{"file", "made.h5"}, {"chunk", "2"}, {"compress", "1"}});
  CHECK_THAT(dumped("h5dump -p -H -d " + array, folder / "made.h5"),
             Contains("CHUNKED ( 2, 33 )") && Contains("DEFLATE { LEVEL 1 }"));
}

TEST_CASE("positions and tokens beyond what an old HDF5 attribute holds are kept") {
  TemporaryFolder folder;
  MadeRun run(folder.str());
  std::vector<std::int32_t> many(40000);
  for (std::size_t i = 0; i < many.size(); ++i) many[i] = static_cast<std::int32_t>(i);
  run.prompts[0].tokens = many;
  const std::vector<MadeEvent> events = {made_event(0, 0, {stages::moe_ffn_out, 2}, many, DType::f32, {3}, 1)};
  capture(run.info, events);
  deliver(*loaded_sink("npy", {{"dir", "dump"}}), run.info, events);
  CHECK(run_python("read_hdf5.py",
                   {folder / "made.h5", write_expected(folder / "expected", run, events), folder / "dump"}) == "ok");
}

TEST_CASE("arrays of many pieces are whole, wherever they begin, also when more rows come later") {
  TemporaryFolder folder;
  MadeRun run(folder.str());
  std::vector<MadeEvent> events;
  for (const std::vector<std::int32_t>& positions : {std::vector<std::int32_t>{0, 1, 2}, {3, 4}})
    for (const int layer : {1, 2, 3}) {
      events.push_back(made_event(0, 1, {stages::moe_ffn_out, layer}, positions, DType::f32, {100'003},
                                  static_cast<unsigned>(events.size() + 1)));
      events.back().total = 5;
    }
  capture(run.info, events);
  deliver(*loaded_sink("npy", {{"dir", "dump"}}), run.info, events);
  CHECK(run_python("read_hdf5.py",
                   {folder / "made.h5", write_expected(folder / "expected", run, events), folder / "dump"}) == "ok");
  CHECK(fs::file_size(folder / "dump/short/fast/layer_02/moe_ffn_out.npy") == npy_header_bytes + 5 * 100'003 * 4);
}

TEST_CASE("a sequence that ends early leaves arrays of the rows that came") {
  for (const OptionList& options : std::vector<OptionList>{plain, {{"file", "made.h5"}, {"chunk", "2"}}}) {
    TemporaryFolder folder;
    MadeRun run(folder.str());
    auto events = made_events();
    for (MadeEvent& event : events) event.total += 5;
    capture(run.info, events, options);
    CHECK(read_back(folder, run, events) == "ok");
  }
}

TEST_CASE("until it is closed a capture has another name, can be read as far as it came, and is not complete") {
  TemporaryFolder folder;
  MadeRun run(folder.str());
  {
    const auto sink = loaded_sink("hdf5", plain);
    sink->open(run.info);
    for (const MadeEvent& event : made_events()) sink->consume(event.view());
    CHECK_FALSE(fs::exists(folder / "made.h5"));
  }
  CHECK_FALSE(fs::exists(folder / "made.h5"));
  CHECK_THAT(dumped("h5ls -r", folder / "made.h5.partial"), Contains("/short/truth/layer_03/moe_expert_out"));
  CHECK(dumped("h5dump -H", folder / "made.h5.partial").find("\"complete\"") == std::string::npos);
  CHECK_THAT(error_of([&] { capture(run.info, made_events()); }),
             Contains("an incomplete capture of an earlier run is there"));
  run.info.overwrite = true;
  capture(run.info, made_events());
  CHECK(read_back(folder, run, made_events()) == "ok");
}

TEST_CASE("only a capture is replaced, and only when that is said") {
  TemporaryFolder folder;
  MadeRun run(folder.str());
  capture(run.info, made_events());
  const std::string before = read_text(folder / "made.h5");
  CHECK_THAT(error_of([&] { capture(run.info, {}); }), Contains("a complete capture") && Contains("--overwrite"));
  CHECK(read_text(folder / "made.h5") == before);
  run.info.overwrite = true;
  capture(run.info, {});
  CHECK(read_back(folder, run, {}) == "ok");

  write_text(folder / "mine/made.h5", "a thesis");
  CHECK_THAT(error_of([&] { capture(run.info, {}, {{"file", "mine/made.h5"}}); }), Contains("not a capture"));
  CHECK(read_text(folder / "mine/made.h5") == "a thesis");
  write_text(folder / "other/made.h5.partial", "a thesis");
  CHECK_THAT(error_of([&] { capture(run.info, {}, {{"file", "other/made.h5"}}); }), Contains("not a capture"));
  REQUIRE(run_command(quoted(MOE_DIAG_PYTHON) + " -c 'import h5py; h5py.File(\"" + folder / "theirs.h5" +
                      "\", \"w\")[\"a\"] = 1'")
              .code == 0);
  CHECK_THAT(error_of([&] { capture(run.info, {}, {{"file", "theirs.h5"}}); }), Contains("not a capture"));
  fs::create_directory(folder / "folder.h5");
  CHECK_THAT(error_of([&] { capture(run.info, {}, {{"file", "folder.h5"}}); }), Contains("is a folder"));
}

TEST_CASE("options of an HDF5 capture that cannot be are refused") {
  CHECK_THAT(error_of([] { loaded_sink("hdf5", {}); }), Contains("made.yaml:1:1: sink 'it': file: missing"));
  CHECK_THAT(error_of([] { loaded_sink("hdf5", {{"file", "a.json"}}); }), Contains("ends in .h5 or .hdf5"));
  CHECK_THAT(error_of([] { loaded_sink("hdf5", {{"file", ".h5"}}); }), Contains("ends in .h5 or .hdf5"));
  CHECK_THAT(error_of([] { loaded_sink("hdf5", {{"file", "../a.h5"}}); }), Contains("below --out"));
  CHECK_THAT(error_of([] { loaded_sink("hdf5", {{"file", "a.h5"}, {"chunk", "0"}}); }), Contains("made.yaml:3:3"));
  CHECK_THAT(error_of([] { loaded_sink("hdf5", {{"file", "a.h5"}, {"compress", "3"}}); }), Contains("add 'chunk'"));
  CHECK_THAT(error_of([] {
               loaded_sink("hdf5", {{"file", "a.h5"}, {"chunk", "2"}, {"compress", "10"}});
             }),
             Contains("from 1 to 9"));
}

TEST_CASE("a disk that is full in the middle of an HDF5 capture: the reason, and what was written can be read") {
  for (const OptionList& options : std::vector<OptionList>{
           plain, {{"file", "made.h5"}, {"chunk", "100"}}, {{"file", "made.h5"}, {"chunk", "1"}, {"compress", "1"}}}) {
    INFO(options.size() << " options");
    TemporaryFolder folder;
    MadeRun run(folder.str());
    std::string error;
    {
      const LargestFile limit(200'000);
      error = error_of([&] {
        capture(run.info,
                {made_event(0, 0, {stages::moe_ffn_out, 1}, {0, 1}, DType::f64, {5000}, 1),
                 made_event(0, 0, {stages::moe_ffn_out, 2}, {0, 1}, DType::f64, {9000}, 1)},
                options);
      });
    }
    CHECK_THAT(error, Contains("made.h5.partial: cannot write: File too large"));
    CHECK_THAT(error, Contains("1 arrays are whole and kept in"));
    CHECK_FALSE(fs::exists(folder / "made.h5"));
    CHECK_THAT(dumped("h5ls -r", folder / "made.h5.partial"),
               Contains("layer_01/moe_ffn_out Dataset {2, 5000}") && !Contains("layer_02/moe_ffn_out"));
  }
}

TEST_CASE("a real full disk, in the middle and at the end, for both sinks that keep arrays") {
  for (const auto& [plugin, options, rest] : std::vector<std::tuple<std::string, OptionList, std::string>>{
           {"npy", {{"dir", "dump"}}, "dump"}, {"hdf5", plain, "made.h5.partial"}})
    for (const bool at_the_end : {false, true}) {
      const SmallDisk disk("1m");
      if (!disk.mounted()) {
        WARN("only root can mount a small file system: a limit on the size of files stands in for it");
        return;
      }
      MadeRun run(disk.str());
      const auto sink = loaded_sink(plugin, options);
      sink->open(run.info);
      sink->consume(made_event(0, 0, {stages::moe_ffn_out, 1}, {0, 1}, DType::f64, {5000}, 1).view());
      for (int layer = 2; layer < 12; ++layer)  // more to be said at the end than what is left of a block
        sink->consume(made_event(0, 0, {stages::ffn_norm, layer}, {0}, DType::f64, {1}, 1).view());
      disk.fill(at_the_end ? 0 : 200'000);
      const std::string error = error_of([&] {
        if (at_the_end)
          sink->close();
        else
          sink->consume(made_event(0, 0, {stages::moe_ffn_out, 2}, {0, 1}, DType::f64, {50000}, 1).view());
      });
      INFO(plugin << (at_the_end ? ", at the end" : ", in the middle"));
      CHECK_THAT(error, Contains(disk / rest) && Contains("No space left on device; free space, capture less, or "));
      CHECK_FALSE(fs::exists(disk / "dump/manifest.json"));
      CHECK_FALSE(fs::exists(disk / "made.h5"));
      if (plugin == "npy") {
        CHECK_THAT(error, Contains(at_the_end ? "11 of 11 arrays are whole" : "11 of 12 arrays are whole"));
        CHECK(fs::file_size(disk / "dump/short/truth/layer_01/moe_ffn_out.npy") == 128 + 80000);
        CHECK_FALSE(fs::exists(disk / "dump/short/truth/layer_02/moe_ffn_out.npy"));
        CHECK(fs::exists(disk / "dump/incomplete"));
      } else {
        CHECK_THAT(error, Contains(at_the_end ? "is not complete" : "11 arrays are whole and kept"));
      }
    }
}

TEST_CASE("a disk that is full when an HDF5 capture is closed: it is not complete, and HDF5 lets go of it") {
  TemporaryFolder folder;
  MadeRun run(folder.str());
  const auto sink = loaded_sink("hdf5", plain);
  sink->open(run.info);
  sink->consume(made_event(0, 0, {stages::moe_ffn_out, 1}, {0, 1}, DType::f64, {5000}, 1).view());
  std::string error;
  {
    const LargestFile limit(1000);
    error = error_of([&] { sink->close(); });
  }
  CHECK_THAT(error, Contains("cannot write: File too large") && Contains("made.h5.partial is not complete"));
  CHECK_FALSE(fs::exists(folder / "made.h5"));
  run.info.overwrite = true;
  capture(run.info, made_events());
  CHECK(read_back(folder, run, made_events()) == "ok");
}

}  // namespace
}  // namespace moe_diag
