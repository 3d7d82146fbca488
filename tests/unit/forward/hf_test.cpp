// SPDX-License-Identifier: MIT
// The f64 lane against Hugging Face transformers in float64: every stage, layer and position of tests/golden/hf.
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "core/compare/measure.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/lockstep.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag::test {
namespace {

namespace fs = std::filesystem;

constexpr double f64_bound = 1e-10;
constexpr double f32_step_bound = 1e-5;

struct Golden {
  std::string name;
  nlohmann::json index;
  std::string values;
};

std::string read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  REQUIRE(in.good());
  return {std::istreambuf_iterator<char>(in), {}};
}

std::vector<Golden> all_golden() {
  std::vector<Golden> list;
  for (const auto& entry : fs::directory_iterator(fs::path(MOE_DIAG_SOURCE_DIR) / "tests/golden/hf"))
    if (entry.path().extension() == ".json") {
      fs::path values = entry.path();
      list.push_back({entry.path().stem(), nlohmann::json::parse(read_file(entry.path())),
                      read_file(values.replace_extension(".bin"))});
    }
  return list;
}

Tensor golden_tensor(const Golden& golden, const nlohmann::json& entry) {
  Tensor t;
  for (const auto& d : entry["shape"]) t.shape.dims[static_cast<std::size_t>(t.shape.rank++)] = d.get<std::int64_t>();
  t.dtype = entry["dtype"] == "i32" ? DType::i32 : DType::f64;
  t.data = golden.values.data() + entry["offset"].get<std::size_t>();
  return t;
}

Site site_of_entry(const nlohmann::json& entry, Stages known) {
  const Stage stage = known.find(entry["stage"].get<std::string>());
  INFO("stage " << entry["stage"]);
  REQUIRE(stage);
  return {stage, entry["layer"].is_null() ? -1 : entry["layer"].get<int>()};
}

void compare_all(const Golden& golden, Stages known, Recorder& seen, int lane, double bound) {
  std::set<std::string> stages;
  for (const auto& entry : golden.index["tensors"]) {
    const Site site = site_of_entry(entry, known);
    const Tensor expected = golden_tensor(golden, entry);
    const Seen& found = seen.at(lane, site);
    INFO(golden.name << ": " << name_of(site.stage) << ", layer " << site.layer << ", lane " << lane);
    stages.emplace(name_of(site.stage));
    REQUIRE(found.shape == expected.shape);
    if (expected.dtype == DType::i32)
      CHECK(std::memcmp(found.bytes.data(), expected.data, expected.bytes()) == 0);
    else
      CHECK(worst_row(found.tensor(), expected) <= bound);
  }
  CHECK(stages.size() == known.size());
}

}  // namespace

TEST_CASE("every stage agrees with HF transformers in float64") {
  const std::vector<Golden> golden = all_golden();
  REQUIRE(golden.size() >= 16);
  for (const Golden& g : golden) {
    const std::string path = std::string(MOE_DIAG_SOURCE_DIR) + "/tests/golden/hf/" + g.name + ".gguf";
    const auto tokens = g.index["tokens"].get<std::vector<std::int32_t>>();
    Lockstep lockstep(
        Model::open(path),
        {lane_spec("truth", {{"numerics", "f64"}}), lane_spec("step", {{"numerics", "f32"}, {"inputs", "truth"}})},
        static_cast<int>(tokens.size()));
    Recorder seen = lockstep.record(tokens);
    const Stages known = lockstep.model().config().stages;
    compare_all(g, known, seen, 0, f64_bound);
    compare_all(g, known, seen, 1, f32_step_bound);
  }
}

TEST_CASE("the comparison with HF sees an error of one part in 10^8") {
  const std::string path = std::string(MOE_DIAG_SOURCE_DIR) + "/tests/golden/hf/odd_widths.gguf";
  for (const Golden& g : all_golden()) {
    if (g.name != "odd_widths") continue;
    const auto tokens = g.index["tokens"].get<std::vector<std::int32_t>>();
    Lockstep lockstep(Model::open(path), {lane_spec("truth", {{"numerics", "f64"}})}, static_cast<int>(tokens.size()));
    FaultSpec fault;
    fault.kind = FaultSpec::Kind::scale;
    fault.stage = stages::attn_norm;
    fault.layer = 0;
    fault.factor = 1 + 1e-8;
    Recorder seen(1);
    lockstep.run(tokens, {&seen}, {{0, fault}});
    for (const auto& entry : g.index["tensors"])
      if (site_of_entry(entry, qwen3moe.stages) == Site{stages::attn_norm, 0})
        CHECK(worst_row(seen.at(0, {stages::attn_norm, 0}).tensor(), golden_tensor(g, entry)) > f64_bound);
  }
}

}  // namespace moe_diag::test
