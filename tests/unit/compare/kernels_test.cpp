// SPDX-License-Identifier: MIT
// Mistakes that kernels have had, written in numpy by tests/golden/kernels beside what Hugging Face computes: each is
// seen at its own step and nowhere else, and is given the cause it has, or none.
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/compare/explain_step.hpp"
#include "core/model/program.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

std::string read_file(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  REQUIRE(in.good());
  return {std::istreambuf_iterator<char>(in), {}};
}

Shape shape_of(const json& entry) {
  Shape shape;
  for (const auto& d : entry["shape"]) shape.dims[static_cast<std::size_t>(shape.rank++)] = d.get<std::int64_t>();
  return shape;
}

Stage stage_named(const json& name) {
  for (const Stage s : qwen3moe.stages)
    if (name_of(s) == name.get<std::string>()) return s;
  FAIL("no stage is called " << name);
  return stages::embedding;
}

// A model with every stage as Hugging Face computes it, in f64 and as an exact f32 lane would hold it.
class Truth {
 public:
  explicit Truth(const std::string& name)
      : folder_(fs::path(MOE_DIAG_SOURCE_DIR) / "tests/golden/hf"),
        model_(Model::open((folder_ / (name + ".gguf")).string())),
        program_(build_program(model_)),
        bytes_(read_file(folder_ / (name + ".bin"))) {
    const json index = json::parse(read_file(folder_ / (name + ".json")));
    tokens_ = index["tokens"].get<std::vector<std::int32_t>>();
    for (const auto& entry : index["tensors"]) {
      const Stage stage = stage_named(entry["stage"]);
      const Site site{stage, entry["layer"].is_null() ? -1 : entry["layer"].get<int>()};
      const bool indices = entry["dtype"] == "i32";
      const Tensor exact{bytes_.data() + entry["offset"].get<std::size_t>(), indices ? DType::i32 : DType::f64,
                         shape_of(entry)};
      exact_[site] = exact;
      if (indices) continue;
      single_[site].assign(exact.as<double>(), exact.as<double>() + exact.shape.count());
    }
  }

  const Model& model() const { return model_; }
  const Program& program() const { return program_; }

  StepCase clean(const Step& step, Stage stage) const {
    StepCase c;
    c.step = &step;
    c.stage = stage;
    const Site site{stage, step.layer};
    for (std::size_t i = 0; i < step.in.size(); ++i) c.in[i] = single(input_of(step, step.in[i]));
    c.tokens = tokens_;
    c.a = single(site);
    c.b = exact_.at(site);
    if (is_per_expert(stage)) c.routing_a = c.routing_b = exact_.at({stages::moe_router_indices, step.layer});
    c.numerics = "f32";
    return c;
  }

 private:
  Site input_of(const Step& step, Stage stage) const {
    if (stage == stages::post_ffn_residual) return {stage, (step.layer < 0 ? model_.config().layers : step.layer) - 1};
    return {stage, info(stage).scope != Scope::layer ? -1 : step.layer};
  }
  Tensor single(Site site) const {
    const Tensor& exact = exact_.at(site);
    return exact.dtype == DType::i32 ? exact : Tensor{single_.at(site).data(), DType::f32, exact.shape};
  }

  const fs::path folder_;
  const Model model_;
  const Program program_;
  const std::string bytes_;
  std::vector<std::int32_t> tokens_;
  std::map<Site, Tensor> exact_;
  std::map<Site, std::vector<float>> single_;
};

}  // namespace

TEST_CASE("a wrong kernel is seen at its own step, and given its own cause or none") {
  const fs::path folder = fs::path(MOE_DIAG_SOURCE_DIR) / "tests/golden/kernels";
  const json index = json::parse(read_file(folder / "kernels.json"));
  const std::string values = read_file(folder / "kernels.bin");
  std::map<std::string, Truth> truths;
  REQUIRE(index["kernels"].size() >= 12);
  for (const auto& kernel : index["kernels"]) {
    const auto name = kernel["model"].get<std::string>();
    const Truth& truth = truths.try_emplace(name, name).first->second;
    const Site site{stage_named(kernel["stage"]), kernel["layer"].get<int>()};
    for (const Step& step : truth.program())
      for (const Stage stage : step.out) {
        if (step.layer != site.layer || payload_of(stage) == Payload::indices) continue;
        StepCase c = truth.clean(step, stage);
        const bool is_wrong = Site{stage, step.layer} == site;
        if (is_wrong) c.a = {values.data() + kernel["offset"].get<std::size_t>(), DType::f32, shape_of(kernel)};
        const StepExplanation e = explain_step(c, truth.model(), truth.program());
        INFO(kernel["kernel"] << " of " << name << ", at " << name_of(stage) << ": " << name_of(e.cause) << " "
                              << e.text << "; " << e.footprint.text);
        if (!is_wrong) {
          CHECK(e.cause == StepCause::none);
          continue;
        }
        const auto right = kernel["cause"].get<std::string>();
        CHECK(name_of(e.cause) == (right.empty() ? "operator" : right));
        CHECK(e.footprint.wrong > 0);
      }
  }
}

}  // namespace moe_diag
