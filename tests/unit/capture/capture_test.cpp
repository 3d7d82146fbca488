// SPDX-License-Identifier: MIT
// What a capture writes is what the bus delivered: picked positions, several lanes, every stage.
#include <cstring>
#include <filesystem>

#include "tests/support/catch.hpp"
#include "tests/support/lockstep.hpp"
#include "tests/support/small_contract.hpp"
#include "tests/support/stages.hpp"
#include "tests/support/temporary_folder.hpp"

namespace moe_diag::test {
namespace {

const std::vector<std::int32_t> tokens = {3, 141, 59, 26, 53};

// The values of an .npy file, behind its header.
std::string npy_values(const std::string& path) {
  const std::string file = read_text(path);
  REQUIRE(file.substr(0, 6) == "\x93NUMPY");
  const auto low = static_cast<unsigned char>(file[8]), high = static_cast<unsigned char>(file[9]);
  return file.substr(10 + low + 256U * high);
}

std::string rows_of(const Seen& seen, const std::vector<int>& positions) {
  const std::size_t row = static_cast<std::size_t>(seen.shape.row()) * size_of(seen.dtype);
  std::string bytes;
  for (int p : positions)
    bytes.append(reinterpret_cast<const char*>(seen.bytes.data()) + static_cast<std::size_t>(p) * row, row);
  return bytes;
}

}  // namespace

TEST_CASE("captured files hold exactly what the bus delivered, at the positions asked for") {
  SyntheticSpec spec;
  spec.seed = 7;
  Lockstep lockstep(Model::synthetic(spec),
                    {lane_spec("truth", {{"numerics", "f64"}}), lane_spec("free", {{"numerics", "f32"}})}, 5);
  Recorder seen = lockstep.record(tokens);

  for (const auto& [selection, positions] : std::vector<std::pair<std::string, std::vector<int>>>{
           {"all", {0, 1, 2, 3, 4}}, {"last", {4}}, {"1..=2", {1, 2}}, {"[0, 2, -1]", {0, 2, 4}}}) {
    const TemporaryFolder folder;
    std::string text = contract_text("", "{synthetic: tiny, seed: 7}", "[3, 141, 59, 26, 53]");
    text.replace(text.find("falsifiers:"), std::string::npos,
                 "capture: [{stages: all, positions: " + selection +
                     ", lanes: [truth, free], to: [dump]}]\nsinks: {dump: {sink: npy, dir: dump}}\n");
    RunOptions options;
    options.out = folder / "out";
    const Verdict verdict = judge_text(text, options);
    REQUIRE(verdict.failure.empty());

    int files = 0;
    for (int lane = 0; lane < 2; ++lane)
      for (const Stage stage : qwen3moe.stages)
        for (int layer = info(stage).scope != Scope::layer ? 3 : 0; layer < 4; ++layer) {
          const bool model_wide = info(stage).scope != Scope::layer;
          const std::string path = folder / ("out/dump/short/" + std::string(lane == 0 ? "truth/" : "free/") +
                                             (model_wide ? "" : "layer_0" + std::to_string(layer) + "/") +
                                             std::string(name_of(stage)) + ".npy");
          INFO(path << ", positions " << selection);
          CHECK(npy_values(path) == rows_of(seen.at(lane, {stage, model_wide ? -1 : layer}), positions));
          ++files;
        }
    CHECK(files == 2 * (23 * 4 + 3));
  }
}

}  // namespace moe_diag::test
