// SPDX-License-Identifier: MIT
// The cuda lanes on a device: what they compute and what must not change a byte. Run on a machine that has one.
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/compare/measure.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/lockstep.hpp"

namespace moe_diag::test {
namespace {

namespace fs = std::filesystem;

constexpr double step_bound = 1e-5;

LaneSpec cuda_spec(const std::string& name, const Keys& keys) {
  LaneSpec spec = lane_spec(name, keys);
  spec.backend = "cuda";
  return spec;
}

std::vector<std::int32_t> tokens_of(int count) {
  std::vector<std::int32_t> tokens;
  for (int i = 0; i < count; ++i) tokens.push_back(i * 97 % 509);
  return tokens;
}

Model made(const std::string& preset, const std::string& quant, int layers) {
  SyntheticSpec spec;
  spec.preset = preset;
  spec.layers = layers;
  spec.seed = 7;
  spec.quant = quant;
  return Model::synthetic(spec);
}

// Every stage of a cuda lane that is fed the truth's values, against the truth.
void check_steps(Model model, const std::vector<std::int32_t>& tokens) {
  const int layers = model.config().layers;
  Lockstep lockstep(std::move(model),
                    {lane_spec("truth", {{"numerics", "f64"}}), cuda_spec("step", {{"inputs", "truth"}})},
                    static_cast<int>(tokens.size()));
  Recorder seen = lockstep.record(tokens);
  std::size_t stages = 0;
  for (const auto& [key, step] : seen.all()) {
    if (std::get<0>(key) != 1) continue;
    const Site site{static_cast<Stage>(std::get<1>(key)), std::get<2>(key)};
    const Seen& truth = seen.at(0, site);
    INFO(name_of(site.stage) << ", layer " << site.layer << ", " << tokens.size() << " tokens");
    REQUIRE(step.shape == truth.shape);
    ++stages;
    if (step.dtype == DType::i32)
      CHECK(step.bytes == truth.bytes);
    else
      CHECK(worst_row(step.tensor(), truth.tensor()) <= step_bound);
  }
  CHECK(stages == static_cast<std::size_t>(23 * layers + 3));
}

Recorder record(const std::string& quant, int count, int chunk = 1 << 20) {
  Lockstep lockstep(made("tiny", quant, 0), {cuda_spec("lane", {})}, count);
  return lockstep.record(tokens_of(count), chunk);
}

void check_same(Recorder& a, Recorder& b, const std::string& what) {
  REQUIRE(a.all().size() == 23 * 4 + 3);
  for (const auto& [key, seen] : a.all()) {
    INFO(what << ": " << name_of(static_cast<Stage>(std::get<1>(key))) << ", layer " << std::get<2>(key));
    CHECK(seen == b.at(0, {static_cast<Stage>(std::get<1>(key)), std::get<2>(key)}));
  }
}

}  // namespace

TEST_CASE("every step agrees with the truth: block types and numbers of rows", "[tiny]") {
  for (const std::string quant : {"f32", "f16", "bf16", "q8_0", "q4_k", "q6_k", "q4_k_m"})
    for (int count : {1, 2, 3, 31, 33, 257}) {
      INFO(quant);
      if (count <= 33 || quant == "q4_k_m") check_steps(made("tiny", quant, 0), tokens_of(count));
    }
}

TEST_CASE("every step agrees with the truth: the models that HF transformers computed", "[tiny]") {
  int models = 0;
  for (const auto& entry : fs::directory_iterator(fs::path(MOE_DIAG_SOURCE_DIR) / "tests/golden/hf")) {
    if (entry.path().extension() != ".json") continue;
    std::ifstream in(entry.path());
    fs::path file = entry.path();
    INFO(file.string());
    check_steps(Model::open(file.replace_extension(".gguf").string()),
                nlohmann::json::parse(in)["tokens"].get<std::vector<std::int32_t>>());
    ++models;
  }
  CHECK(models >= 6);
}

TEST_CASE("every step agrees with the truth: full width", "[wide]") {
  check_steps(made("qwen3-30b-a3b", "q4_k_m", 4), {785, 9217, 308});
  check_steps(made("qwen3-30b-a3b", "q4_k_m", 4), tokens_of(33));
}

// Little enough for a checker that watches every access: all kernels, those for few rows and those for many.
TEST_CASE("every step agrees with the truth: briefly", "[brief]") {
  check_steps(made("tiny", "q4_k_m", 1), tokens_of(3));
  check_steps(made("tiny", "q4_k_m", 1), tokens_of(33));
  check_steps(made("tiny", "q8_0", 1), tokens_of(33));
}

TEST_CASE("runs, batches and chunks give the same bytes", "[tiny]") {
  for (const std::string quant : {"f32", "q8_0", "q4_k_m"}) {
    Recorder batch = record(quant, 65);
    Recorder again = record(quant, 65);
    check_same(batch, again, quant + ", again");
    for (int chunk : {1, 8, 40}) {
      Recorder chunks = record(quant, 65, chunk);
      check_same(batch, chunks, quant + ", chunks of " + std::to_string(chunk));
    }
  }
}

TEST_CASE("looking, and replaying a recorded graph, change no byte", "[tiny]") {
  for (int chunk : {1, 3, 1 << 20}) {
    Lockstep lockstep(made("tiny", "q4_k_m", 0), {cuda_spec("lane", {})}, 33);
    Recorder everything(1), head_only(1, false);
    lockstep.run(tokens_of(33), {&everything}, {}, chunk);
    lockstep.run(tokens_of(33), {&head_only}, {}, chunk);
    REQUIRE(head_only.all().size() == 1);
    CHECK(everything.at(0, {Stage::lm_head, -1}) == head_only.at(0, {Stage::lm_head, -1}));
  }
}

TEST_CASE("an expert that the model does not have is refused, not used", "[tiny]") {
  Lockstep lockstep(made("tiny", "q4_k_m", 0), {cuda_spec("lane", {})}, 2);
  Recorder all(1);
  lockstep.run(tokens_of(2), {&all});
  RunningLane& lane = lockstep.lanes()[0];
  const int used = lockstep.model().config().used;
  std::vector<std::int32_t> ids(static_cast<std::size_t>(2 * used), lockstep.model().config().experts);
  CHECK_THROWS_AS(lane.write(Stage::moe_router_indices, {0, 2}, {ids.data(), DType::i32, Shape{2, used}}), Error);
}

TEST_CASE("a change of one token changes bytes", "[tiny]") {
  Lockstep lockstep(made("tiny", "q4_k_m", 0), {cuda_spec("lane", {})}, 3);
  Recorder a = lockstep.record({1, 2, 3}), b = lockstep.record({1, 2, 4});
  CHECK_FALSE(a.at(0, {Stage::lm_head, -1}) == b.at(0, {Stage::lm_head, -1}));
}

}  // namespace moe_diag::test
