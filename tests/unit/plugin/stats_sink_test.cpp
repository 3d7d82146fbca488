// SPDX-License-Identifier: MIT
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/support/catch.hpp"
#include "tests/support/stages.hpp"
#include "tests/unit/plugin/sink_support.hpp"

namespace moe_diag {
namespace {

using Catch::Matchers::Contains;
namespace fs = std::filesystem;

constexpr double nan = std::numeric_limits<double>::quiet_NaN();
constexpr double inf = std::numeric_limits<double>::infinity();

// made_events() and values that go wrong where they can.
std::vector<MadeEvent> hard_events() {
  auto events = made_events();
  const auto add = [&](int layer, std::vector<double> values, std::vector<std::int32_t> positions) {
    const auto row = static_cast<std::int64_t>(values.size() / positions.size());
    events.push_back(made_event(0, 0, {stages::ffn_norm, layer}, std::move(positions), DType::f64, {row}, 1));
    std::copy(values.begin(), values.end(), events.back().values<double>());
  };
  add(0, {1, nan, -7, inf, 0, -0.0}, {3, 8});
  add(1, {nan, -inf, inf, nan}, {0, 1});             // nothing finite
  add(2, {-inf, -1, -2, -3, nan, -0.5}, {1, 2, 3});  // all below zero
  add(3, {7, 7, 7, 7}, {1});                         // no spread
  // A mean far from zero: the naive sum of squares loses the spread.
  std::vector<double> far(5000);
  for (std::size_t i = 0; i < far.size(); ++i) far[i] = 1e6 + 1e-3 * std::sin(static_cast<double>(i));
  add(4, far, {0, 1, 2, 3, 4});
  // One outlier and NaN behind the first block of values.
  std::vector<double> late(4100, 0.5);
  late[3000] = -408;
  late[3001] = 408;
  late[4099] = nan;
  add(5, late, {0, 7});
  // Tiny in f32, and largest.
  events.push_back(made_event(0, 1, {stages::ffn_norm, 0}, {0}, DType::f32, {3}, 1));
  const float edge[] = {std::numeric_limits<float>::denorm_min(), std::numeric_limits<float>::max(), 0};
  std::copy(edge, edge + 3, events.back().values<float>());
  return events;
}

TEST_CASE("statistics equal numpy's, as JSON and as CSV") {
  for (const char* name : {"stats.json", "sub/stats.csv"}) {
    TemporaryFolder folder;
    MadeRun run(folder.str());
    auto events = hard_events();
    deliver(*loaded_sink("stats", {{"file", name}}), run.info, events);
    events.erase(std::remove_if(events.begin(), events.end(), [](const MadeEvent& e) { return e.positions.empty(); }),
                 events.end());
    // The site without rows has nothing for numpy to look at.
    std::string text = read_text(folder / name);
    const std::size_t line = text.find("final_norm");
    REQUIRE(line != std::string::npos);
    text.erase(text.rfind('\n', line), text.find('\n', line) - text.rfind('\n', line));
    write_text(folder / name, text);
    CHECK(run_python("read_stats.py", {folder / name, write_expected(folder / "expected", run, events)}) == "ok");

    events.back().values<float>()[1] = 3;
    CHECK_THAT(run_python("read_stats.py", {folder / name, write_expected(folder / "expected", run, events)}),
               Contains("AssertionError"));
  }
}

TEST_CASE("statistics of values of 16 bits equal numpy's") {
  TemporaryFolder folder;
  MadeRun run(folder.str());
  auto events = made_16_bit_events();
  events.erase(std::remove_if(events.begin(), events.end(), [](const MadeEvent& e) { return e.positions.empty(); }),
               events.end());
  deliver(*loaded_sink("stats", {{"file", "stats.json"}}), run.info, events);
  const std::string expected = write_expected(folder / "expected", run, events);
  CHECK(run_python("read_stats.py", {folder / "stats.json", expected}) == "ok");
}

nlohmann::json site_of(const MadeRun& run, const std::vector<MadeEvent>& events) {
  deliver(*loaded_sink("stats", {{"file", "stats.json"}}), run.info, events);
  const auto json = nlohmann::json::parse(read_text(run.out + "/stats.json"));
  REQUIRE(json["sites"].size() == 1);
  return json["sites"][0];
}

TEST_CASE("a site without a finite value has null, never infinity") {
  TemporaryFolder folder;
  MadeRun run(folder.str());
  MadeEvent event = made_event(1, 1, {stages::moe_ffn_out, 6}, {4, 9}, DType::f32, {2}, 1);
  const float values[] = {-std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN(),
                          std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()};
  std::copy(values, values + 4, event.values<float>());
  const auto site = site_of(run, {event});
  for (const char* key : {"min", "max", "mean", "std", "l2", "rms", "absmax", "absmax_at"}) {
    INFO(key);
    CHECK(site[key].is_null());
  }
  CHECK(site["nan"] == 2);
  CHECK(site["inf"] == 2);
  CHECK(site["first_nan"] == nlohmann::json({{"position", 4}, {"element", 1}}));
  CHECK(site["first_inf"] == nlohmann::json({{"position", 4}, {"element", 0}}));
}

TEST_CASE("events of one site merge, whatever the chunking") {
  const std::vector<std::int32_t> positions = {0, 1, 2, 3, 4, 5, 6};
  const MadeEvent whole = made_event(0, 0, {stages::attn_out, 2}, positions, DType::f64, {301}, 17);
  std::vector<MadeEvent> parts;
  for (const std::int32_t p : positions) {
    parts.push_back(made_event(0, 0, whole.site, {p}, DType::f64, {301}, 1));
    std::memcpy(parts.back().bytes.data(), whole.bytes.data() + static_cast<std::size_t>(p) * 301 * 8, 301 * 8);
  }
  TemporaryFolder one, many;
  MadeRun run_one(one.str()), run_many(many.str());
  const auto a = site_of(run_one, {whole}), b = site_of(run_many, parts);
  for (const char* key : {"count", "rows", "min", "max", "absmax", "absmax_at", "zeros"}) CHECK(a[key] == b[key]);
  for (const char* key : {"mean", "std", "l2", "rms"})
    CHECK(a[key].get<double>() == Approx(b[key].get<double>()).epsilon(1e-13));
}

TEST_CASE("index stages count, and have no mean") {
  TemporaryFolder folder;
  MadeRun run(folder.str());
  MadeEvent event = made_event(0, 0, {stages::moe_router_indices, 1}, {0, 1}, DType::i32, {3}, 1);
  const std::int32_t ids[] = {5, 2, 9, 2, 5, 127};
  std::copy(ids, ids + 6, event.values<std::int32_t>());
  const auto site = site_of(run, {event});
  CHECK(site["count"] == 6);
  CHECK(site["min"] == 2);
  CHECK(site["max"] == 127);
  CHECK(site["distinct"] == 4);
  CHECK_FALSE(site.contains("mean"));
}

TEST_CASE("options say what is wrong with them") {
  CHECK_THAT(error_of([] { loaded_sink("stats", {}); }), Contains("file: missing"));
  CHECK_THAT(error_of([] { loaded_sink("stats", {{"file", "stats.txt"}}); }), Contains("ends in .json or .csv"));
  CHECK_THAT(error_of([] { loaded_sink("stats", {{"file", "../stats.json"}}); }), Contains("below --out"));
  CHECK_THAT(error_of([] {
               loaded_sink("stats", {{"file", "s.json"}, {"format", "xml"}});
             }),
             Contains("made.yaml:3:3: sink 'it': format: found 'xml', expected one of json, csv"));
  CHECK_THAT(error_of([] { loaded_sink("stats", {{"file", "s.json"}, {"print", "yes"}}); }), Contains("true or false"));
  CHECK(error_of([] { loaded_sink("stats", {{"file", "stats.txt"}, {"format", "csv"}}); }) == "no error");
}

TEST_CASE("a file that is there is replaced only with overwrite, and whole") {
  TemporaryFolder folder;
  MadeRun run(folder.str());
  write_text(folder / "stats.json", "before");
  const auto use = [&] {
    return error_of([&] { deliver(*loaded_sink("stats", {{"file", "stats.json"}}), run.info, made_events()); });
  };
  CHECK_THAT(use(), Contains(folder / "stats.json" + ": is there already; replace it with --overwrite"));
  CHECK(read_text(folder / "stats.json") == "before");
  run.info.overwrite = true;
  CHECK(use() == "no error");
  CHECK_FALSE(fs::exists(folder / "stats.json.partial"));
  fs::remove(folder / "stats.json");
  fs::create_directory(folder / "stats.json");
  CHECK_THAT(use(), Contains("is a folder"));
}

TEST_CASE("a run that does not close leaves no file") {
  TemporaryFolder folder;
  MadeRun run(folder.str());
  {
    const auto sink = loaded_sink("stats", {{"file", "stats.json"}});
    sink->open(run.info);
    for (const MadeEvent& event : made_events()) sink->consume(event.view());
  }
  CHECK(fs::is_empty(folder.str()));
}

// What the sink prints at the end, taken from the real standard output.
std::string printed(const std::vector<MadeEvent>& events) {
  TemporaryFolder folder;
  MadeRun run(folder.str(), 48);
  std::fflush(stdout);
  const int before = ::dup(STDOUT_FILENO);
  const int file = ::open((folder / "stdout").c_str(), O_CREAT | O_WRONLY, 0600);
  ::dup2(file, STDOUT_FILENO);
  deliver(*loaded_sink("stats", {{"file", "stats.csv"}, {"print", "true"}}), run.info, events);
  ::dup2(before, STDOUT_FILENO);
  ::close(before);
  ::close(file);
  return read_text(folder / "stdout");
}

TEST_CASE("the table elides the middle, but no site that holds NaN") {
  std::vector<MadeEvent> events;
  for (int layer = 0; layer < 48; ++layer)
    for (const Stage stage : {stages::attn_norm, stages::moe_ffn_out})
      events.push_back(made_event(0, 1, {stage, layer}, {0, 4}, DType::f32, {3}, 1));
  events.push_back(made_event(1, 1, {stages::moe_router_indices, 0}, {0}, DType::i32, {4}, 1));
  events[61].values<float>()[4] = std::numeric_limits<float>::quiet_NaN();  // moe_ffn_out of layer 30
  const std::string text = printed(events);
  CHECK_THAT(text, Contains("prompt short, lane fast\n  layer stage "));
  CHECK_THAT(text, Contains("    ... 41 more in "));
  CHECK_THAT(text, Contains("     30 moe_ffn_out "));
  CHECK_THAT(text, Contains("first: position 4, element 1\n    ... 14 more in "));
  CHECK_THAT(text, Contains("prompt long-one, lane fast\n"));
  CHECK_THAT(text, Contains(" distinct\n"));
}

}  // namespace
}  // namespace moe_diag
