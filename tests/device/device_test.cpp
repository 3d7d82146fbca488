// SPDX-License-Identifier: MIT
// The cuda lanes on a device: what they compute and what must not change a byte. Run on a machine that has one.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>

#include "core/compare/measure.hpp"
#include "core/lane/rounded_lane.hpp"
#include "core/model/program.hpp"
#include "core/ops/linear.hpp"
#include "core/ops/predicted.hpp"
#include "tests/support/caches.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/declining.hpp"
#include "tests/support/lockstep.hpp"
#include "tests/support/process.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag::test {
namespace {

namespace fs = std::filesystem;
using Catch::Matchers::Contains;

constexpr double step_bound = 1e-5;            // of f32
constexpr double over_expected = 4;            // of coarse numerics: the worst row over what rows are expected to have
constexpr double over_expected_of_logits = 8;  // errors of early steps grow on their way
const std::string all_numerics[] = {"f32", "bf16", "q8_1"};

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

// The largest error of rows of one value, each in proportion to the terms of its sum: the value may be near 0.
double worst_value(const Step& step, const Tensor& input, const Tensor& a, const Tensor& b) {
  double worst = 0;
  for (std::int64_t r = 0; r < b.shape[0]; ++r) {
    const double right = b.value(r), terms = cancellation(step, host::values_of(input, r, 1), right) * right;
    worst = std::max(worst, std::fabs((a.value(r) - right) / terms));
  }
  return worst;
}

std::size_t sites_of(const ModelConfig& config) {
  std::size_t sites = 0;
  for (const Stage stage : config.stages)
    sites += info(stage).scope == Scope::layer ? static_cast<std::size_t>(config.layers) : 1;
  return sites;
}

// Every stage of a cuda lane that is fed the truth's values, against the truth.
void check_steps(Model model, const std::vector<std::int32_t>& tokens, const std::string& numerics = "f32") {
  const ModelConfig config = model.config();
  const int keys = static_cast<int>(tokens.size());
  Lockstep lockstep(
      std::move(model),
      {lane_spec("truth", {{"numerics", "f64"}}), cuda_spec("step", {{"inputs", "truth"}, {"numerics", numerics}})},
      keys);
  const Program program = build_program(lockstep.model());
  Recorder seen = lockstep.record(tokens);
  std::size_t stages = 0;
  for (const auto& [key, step] : seen.all()) {
    if (key.first != 1) continue;
    const Site site = key.second;
    const Seen& truth = seen.at(0, site);
    INFO(name_of(site.stage) << ", layer " << site.layer << ", " << keys << " tokens, " << numerics);
    REQUIRE(step.shape == truth.shape);
    ++stages;
    if (step.dtype == DType::i32) {
      CHECK(step.bytes == truth.bytes);
      continue;
    }
    const Step& by = *find_step(program, site);
    // The fewer values a row has, the farther off the worst of many rows is.
    const double most = truth.shape.row() < 16 ? 1.5 * over_expected : over_expected;
    double bound = step_bound;
    if (numerics != "f32") bound = std::max(bound, most * expected_error(numerics, by, config, keys).value());
    if (truth.shape.row() == 1 && by.op == Op::linear)
      CHECK(worst_value(by, seen.at(0, {by.in[0], site.layer}).tensor(), step.tensor(), truth.tensor()) <= bound);
    else
      CHECK(worst_row(step.tensor(), truth.tensor()) <= bound);
  }
  CHECK(stages == sites_of(config));
}

Recorder record(const std::string& quant, int count, int chunk = 1 << 20, const std::string& numerics = "f32",
                const std::string& preset = "tiny") {
  Lockstep lockstep(made(preset, quant, 0), {cuda_spec("lane", {{"numerics", numerics}})}, count);
  return lockstep.record(tokens_of(count), chunk);
}

void check_same(Recorder& a, Recorder& b, const std::string& what) {
  REQUIRE(a.all().size() == b.all().size());
  for (const auto& [key, seen] : a.all()) {
    INFO(what << ": " << name_of(key.second.stage) << ", layer " << key.second.layer);
    CHECK(seen == b.at(0, key.second));
  }
}

// Leaves so many bytes of the device free.
class FilledDevice {
 public:
  explicit FilledDevice(std::size_t leave) {
    std::size_t free = 0, total = 0;
    REQUIRE(cudaMemGetInfo(&free, &total) == cudaSuccess);
    if (free > leave) REQUIRE(cudaMalloc(&memory_, free - leave) == cudaSuccess);
  }
  ~FilledDevice() { cudaFree(memory_); }
  FilledDevice(const FilledDevice&) = delete;
  FilledDevice& operator=(const FilledDevice&) = delete;

 private:
  void* memory_ = nullptr;
};

// Looks at one stage alone, and at the head.
class LookAt final : public Hook {
 public:
  explicit LookAt(Stage stage) : stage_(stage) {}

  bool wants(int, int, Site site) const override { return site.stage == stage_ || is(site.stage, Role::logits); }
  void show(Sighting& sighting) override {
    const Tensor t = sighting.tensor(0);
    Seen& seen = seen_[sighting.site];
    seen.shape = t.shape;
    seen.bytes.assign(t.as<std::byte>(), t.as<std::byte>() + t.bytes());
  }
  const std::map<Site, Seen>& all() const { return seen_; }

 private:
  Stage stage_;
  std::map<Site, Seen> seen_;
};

// An expert that only the lane chose, with another that only the truth chose, is a near tie: the truth's logits differ
// by no more than the lane's are off.
void check_flips(Recorder& seen, int layer, int experts, int used, int& flips) {
  const Seen &a = seen.at(1, {stages::moe_router_logits, layer}), &b = seen.at(0, {stages::moe_router_logits, layer});
  const auto* ids_a = seen.at(1, {stages::moe_router_indices, layer}).tensor().as<std::int32_t>();
  const auto* ids_b = seen.at(0, {stages::moe_router_indices, layer}).tensor().as<std::int32_t>();
  for (std::int64_t row = 0; row < a.shape[0]; ++row) {
    const auto* x = a.tensor().as<float>() + row * experts;
    const auto* truth = b.tensor().as<double>() + row * experts;
    const auto* chosen = ids_a + row * used;
    const auto* right = ids_b + row * used;
    for (int i = 0; i < used; ++i) {
      if (std::find(right, right + used, chosen[i]) != right + used) continue;
      ++flips;
      for (int j = 0; j < used; ++j) {
        if (std::find(chosen, chosen + used, right[j]) != chosen + used) continue;
        const double off = std::abs(x[chosen[i]] - truth[chosen[i]]) + std::abs(x[right[j]] - truth[right[j]]);
        CHECK(truth[right[j]] - truth[chosen[i]] <= off * (1 + 1e-6) + 1e-6);
      }
    }
  }
}

// Errors of the steps, as if each reached the logits in its own size and direction.
double expected_of_logits(const Model& model, const std::string& numerics, int keys) {
  double squares = 0;
  for (const Step& step : build_program(model)) {
    const double error = expected_error(numerics, step, model.config(), keys).value();
    squares += error * error;
  }
  return std::sqrt(squares);
}

}  // namespace

TEST_CASE("a lane on the device stands for an engine, too") {
  for (const Keys& engine : {Keys{{"stored", "hf"}}, Keys{{"stored", "f16"}}, Keys{{"reads", "q8_0"}},
                             Keys{{"kv_cache", "q8_0"}}, Keys{{"stored", "vllm"}, {"kv_cache", "f16"}}}) {
    Keys truth = engine, step = engine;
    truth.emplace_back("numerics", "f64");
    step.insert(step.end(), {{"numerics", "f32"}, {"inputs", "truth"}});
    const std::vector<std::int32_t> tokens = tokens_of(9);
    Lockstep lockstep(made("tiny", "q4_k_m", 0), {lane_spec("truth", truth), cuda_spec("step", step)}, 9);
    Recorder seen = lockstep.record(tokens);
    const ModelConfig& config = lockstep.model().config();
    const LaneNumerics of_truth(lockstep.lanes()[0].description), of_step(lockstep.lanes()[1].description);
    for (const Step& by : build_program(lockstep.model()))
      for (const Stage stage : by.out) {
        if (is_routing(stage)) continue;
        const Site site = site_of(by, stage);
        INFO(lockstep.lanes()[1].engine << ", " << name_of(stage) << ", layer " << site.layer);
        CHECK(worst_row(seen.at(1, site).tensor(), seen.at(0, site).tensor()) <=
              10 * expected_error(of_step, by, config, 9, of_truth).value());
      }
  }
}

TEST_CASE("stages that the device rounds where they lie have the bytes of those rounded on the host") {
  const std::vector<std::int32_t> tokens = tokens_of(19);
  for (const std::string stored : {"hf", "vllm", "f16"})
    for (const int chunk : {19, 1}) {
      INFO(stored << ", chunks of " << chunk);
      Lockstep here(made("tiny", "q4_k_m", 0), {cuda_spec("lane", {{"numerics", "f32"}, {"stored", stored}})}, 19);
      Lockstep around(made("tiny", "q4_k_m", 0), {cuda_spec("lane", {{"numerics", "f32"}})}, 19);
      RunningLane& lane = around.lanes()[0];
      EngineNumerics engine;
      engine.stored = stored;
      const ModelConfig& config = around.model().config();
      const auto all = [](std::span<const Step> steps) { return steps.size(); };
      lane.attach(std::make_unique<RoundedLane>(std::make_unique<Declining>(lane.replace(nullptr), all), config,
                                                around.lanes().program(0), engine,
                                                storage_of(engine, config.stages, lane.description)));
      const Recorder seen = here.record(tokens, chunk), expected = around.record(tokens, chunk);
      REQUIRE(seen.all().size() == expected.all().size());
      for (const auto& [key, stage] : expected.all()) {
        INFO(name_of(key.second.stage) << ", layer " << key.second.layer);
        CHECK(seen.all().at(key) == stage);
      }
      Recorder last(std::size_t{1}, false);  // the logits only: whatever may run as one does
      here.run(tokens, {&last}, {}, chunk);
      CHECK(last.at(0, {stages::lm_head, -1}) == expected.all().at({0, {stages::lm_head, -1}}));
    }
}

TEST_CASE("every step agrees with the truth: block types and numbers of rows", "[tiny]") {
  for (const std::string quant : {"f32", "f16", "bf16", "q8_0", "q4_k", "q6_k", "q4_k_m"})
    for (int count : {1, 2, 3, 31, 33, 257}) {
      INFO(quant);
      if (count <= 33 || quant == "q4_k_m") check_steps(made("tiny", quant, 0), tokens_of(count));
    }
}

TEST_CASE("every step of bf16 and q8_1 errs as expected: block types and numbers of rows", "[tiny]") {
  for (const std::string numerics : {"bf16", "q8_1"})
    for (const std::string quant : {"f32", "f16", "bf16", "q8_0", "q4_k", "q6_k", "q4_k_m"})
      for (int count : {1, 3, 33, 257}) {
        INFO(quant);
        if (count <= 33 || quant == "q4_k_m") check_steps(made("tiny", quant, 0), tokens_of(count), numerics);
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

TEST_CASE("every step agrees with the truth: Qwen2-MoE", "[tiny]") {
  for (const std::string& numerics : all_numerics)
    for (const std::string quant : {"q4_k_m", "q8_0", "bf16"})
      for (int count : {1, 3, 33, 257}) {
        INFO(quant);
        check_steps(made("tiny-qwen2moe", quant, 0), tokens_of(count), numerics);
      }
}

TEST_CASE("every step agrees with the truth: full width", "[wide]") {
  for (const std::string& numerics : all_numerics) {
    check_steps(made("qwen3-30b-a3b", "q4_k_m", 4), {785, 9217, 308}, numerics);
    check_steps(made("qwen3-30b-a3b", "q4_k_m", 4), tokens_of(40), numerics);
    check_steps(made("qwen1.5-moe-a2.7b", "q4_k_m", 3), tokens_of(40), numerics);
  }
}

// Little enough for a checker that watches every access: all kernels, those for few rows and those for many.
TEST_CASE("every step agrees with the truth: briefly", "[brief]") {
  check_steps(made("tiny", "q4_k_m", 1), tokens_of(3));
  check_steps(made("tiny", "q4_k_m", 1), tokens_of(33));
  check_steps(made("tiny", "q8_0", 1), tokens_of(33));
  for (const std::string numerics : {"bf16", "q8_1"}) {
    check_steps(made("tiny", "q4_k_m", 1), tokens_of(3), numerics);
    check_steps(made("tiny", "q4_k_m", 1), tokens_of(65), numerics);
  }
}

TEST_CASE("nobody looking: briefly", "[brief]") {
  for (const std::string& numerics : all_numerics)
    for (int count : {1, 3, 65}) {
      Lockstep lockstep(made("tiny", "q4_k_m", 1), {cuda_spec("lane", {{"numerics", numerics}})}, count);
      Recorder first(1, false), second(1, false), third(1, false);
      lockstep.run(tokens_of(count), {&first});
      lockstep.run(tokens_of(count), {&second});
      lockstep.run(tokens_of(count), {&third});
      CHECK(first.at(0, {stages::lm_head, -1}) == third.at(0, {stages::lm_head, -1}));
    }
}

TEST_CASE("lanes left to themselves: no flip but near ties; with the truth's routing, logits as near as expected",
          "[tiny]") {
  for (const std::string& numerics : all_numerics) {
    Lockstep lockstep(made("tiny", "q4_k_m", 0),
                      {lane_spec("truth", {{"numerics", "f64"}}), cuda_spec("free", {{"numerics", numerics}}),
                       cuda_spec("routed", {{"numerics", numerics}, {"routing", "truth"}})},
                      33);
    const ModelConfig& config = lockstep.model().config();
    Recorder seen = lockstep.record(tokens_of(33));
    int flips = 0;
    for (int layer = 0; layer < config.layers; ++layer) check_flips(seen, layer, config.experts, config.used, flips);
    const Site head{stages::lm_head, -1};
    const double free = worst_row(seen.at(1, head).tensor(), seen.at(0, head).tensor());
    const double routed = worst_row(seen.at(2, head).tensor(), seen.at(0, head).tensor());
    const double expected = expected_of_logits(lockstep.model(), numerics, 33);
    WARN(numerics << ": " << flips << " flips; worst row of logits " << free << ", routed " << routed << ", expected "
                  << expected);
    CHECK(std::isfinite(free));
    CHECK(routed <= over_expected_of_logits * expected);
  }
}

TEST_CASE("runs, batches and chunks give the same bytes", "[tiny]") {
  for (const std::string preset : {"tiny", "tiny-qwen2moe"})
    for (const std::string quant : {"f32", "q8_0", "q4_k_m"}) {
      Recorder batch = record(quant, 65, 65, "f32", preset);
      Recorder again = record(quant, 65, 65, "f32", preset);
      check_same(batch, again, quant + ", again");
      for (int chunk : {1, 8, 40}) {
        Recorder chunks = record(quant, 65, chunk, "f32", preset);
        check_same(batch, chunks, quant + ", chunks of " + std::to_string(chunk));
      }
    }
}

TEST_CASE("a fed lane that joins late gives the same bytes as one that was there all the time", "[tiny]") {
  for (const std::string& numerics : all_numerics) {
    INFO(numerics);
    CHECK(changed_by_late_start("cuda", numerics, true) == 0);
    CHECK(changed_by_late_start("cuda", numerics, false) > 0);
  }
}

TEST_CASE("a cache is read as it was computed, and written in another type", "[tiny]") {
  for (const std::string& numerics : all_numerics) check_cache("cuda", numerics);
}

TEST_CASE("coarse numerics give the same bytes over runs", "[tiny]") {
  for (const std::string numerics : {"bf16", "q8_1"})
    for (int count : {1, 33, 257}) {
      Recorder once = record("q4_k_m", count, 1 << 20, numerics);
      Recorder again = record("q4_k_m", count, 1 << 20, numerics);
      check_same(once, again, numerics + ", again");
    }
}

TEST_CASE("fused operators give the bytes of those that store what is between them", "[tiny]") {
  for (const std::string& numerics : all_numerics)
    for (const std::string quant : {"q8_0", "q4_k_m"})
      for (const auto& [preset, count] : {std::pair{"tiny", 1},
                                          {"tiny", 3},
                                          {"tiny", 33},
                                          {"tiny", 200},
                                          {"tiny-qwen2moe", 3},
                                          {"tiny-qwen2moe", 33}}) {
        Lockstep lockstep(made(preset, quant, 0), {cuda_spec("lane", {{"numerics", numerics}})}, count);
        Recorder everything = lockstep.record(tokens_of(count));
        for (const Stage stage : lockstep.model().config().stages) {
          LookAt look(stage);
          for (int turn = 0; turn < 3; ++turn) lockstep.run(tokens_of(count), {&look});  // the third from a graph
          CHECK(look.all().size() == (info(stage).scope == Scope::layer ? 5u : is(stage, Role::logits) ? 1u : 2u));
          for (const auto& [key, seen] : look.all()) {
            INFO(numerics << ", " << quant << ", " << count << " tokens: looking at " << name_of(stage) << " alone");
            CHECK(seen == everything.at(0, key));
          }
        }
      }
}

TEST_CASE("looking, and replaying a recorded graph, change no byte", "[tiny]") {
  for (int chunk : {1, 3, 1 << 20}) {
    Lockstep lockstep(made("tiny", "q4_k_m", 0), {cuda_spec("lane", {{"numerics", "f32"}})}, 33);
    Recorder everything(1), head_only(1, false);
    lockstep.run(tokens_of(33), {&everything}, {}, chunk);
    lockstep.run(tokens_of(33), {&head_only}, {}, chunk);
    REQUIRE(head_only.all().size() == 1);
    CHECK(everything.at(0, {stages::lm_head, -1}) == head_only.at(0, {stages::lm_head, -1}));
  }
}

TEST_CASE("an expert that the model does not have is refused, not used", "[tiny]") {
  Lockstep lockstep(made("tiny", "q4_k_m", 0), {cuda_spec("lane", {{"numerics", "f32"}})}, 2);
  Recorder all(1);
  lockstep.run(tokens_of(2), {&all});
  RunningLane& lane = lockstep.lanes()[0];
  const int used = lockstep.model().config().used;
  std::vector<std::int32_t> ids(static_cast<std::size_t>(2 * used), lockstep.model().config().experts);
  CHECK_THROWS_AS(lane.write({stages::moe_router_indices, 0}, {0, 2}, {ids.data(), DType::i32, Shape{2, used}}), Error);
}

TEST_CASE("memory that runs out in a pass is an error that says so, and not the lane's end", "[tiny]") {
  Lockstep lockstep(made("tiny", "q4_k_m", 0), {cuda_spec("lane", {{"numerics", "f32"}})}, 3);
  Recorder before = lockstep.record(tokens_of(3));
  {
    const FilledDevice filled(std::size_t{1} << 30);
    try {
      lockstep.record(tokens_of(30000));
      FAIL("30000 tokens fit in a gigabyte");
    } catch (const Error& e) {
      CHECK(e.kind() == ErrorKind::environment);
      CHECK_THAT(e.what(), Contains("bytes wanted, the device has"));
    }
  }
  Recorder after = lockstep.record(tokens_of(3));
  check_same(before, after, "after");
}

// What is left is a little more than what the lane says it needs, and device memory comes in larger pieces.
TEST_CASE("memory that runs out in a run ends it with exit 4 and the captures say that they are not complete") {
  const TemporaryFolder folder;
  std::string tokens = "3";
  for (int i = 1; i < 512; ++i) tokens += ", " + std::to_string(i % 509);
  std::ofstream(folder / "contract.yaml") << R"(metadata: {id: full, version: 1.0.0, description: a, references: []}
model: {synthetic: tiny, seed: 7}
prompts: [{id: long, tokens: [)" << tokens << R"(]}]
oracle: gpu
lanes:
  gpu: {backend: cuda, numerics: f32}
  other: {backend: cuda, numerics: f32}
capture:
  - {stages: all, layers: all, positions: all, lanes: [gpu], to: [dump]}
sinks:
  dump: {sink: npy, dir: dump}
falsifiers:
  - {id: SAME, claim: a, lane: other, stage: lm_head, metric: rel_l2, at_most: 0}
)";
  // With the lower the lane is refused beforehand, with the upper it runs; in between its memory runs out.
  std::size_t lower = 0, upper = std::size_t{2} << 30;
  Finished finished;
  for (int turn = 0; turn < 16; ++turn) {
    const std::size_t left = (lower + upper) / 2;
    const FilledDevice filled(left);
    finished = run_command("rm -rf " + quoted(folder / "out") + "; " + quoted(MOE_DIAG_EXE) + " run " +
                           quoted(folder / "contract.yaml") + " --out " + quoted(folder / "out"));
    if (finished.out.find("The run ended early") != std::string::npos) break;
    (finished.code == 0 ? upper : lower) = left;
  }
  INFO(finished.out << finished.err);
  CHECK(finished.code == 4);
  CHECK_THAT(finished.out, Contains("bytes wanted, the device has") || Contains("out of memory"));
  CHECK_FALSE(fs::exists(folder / "out/dump/manifest.json"));
}

TEST_CASE("a change of one token changes bytes", "[tiny]") {
  Lockstep lockstep(made("tiny", "q4_k_m", 0), {cuda_spec("lane", {{"numerics", "f32"}})}, 3);
  Recorder a = lockstep.record({1, 2, 3}), b = lockstep.record({1, 2, 4});
  CHECK_FALSE(a.at(0, {stages::lm_head, -1}) == b.at(0, {stages::lm_head, -1}));
}

}  // namespace moe_diag::test
