// SPDX-License-Identifier: MIT
#include "core/arch/architecture.hpp"

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "core/model/model.hpp"
#include "core/model/program.hpp"
#include "tests/support/catch.hpp"

namespace moe_diag {

TEST_CASE("every file of core/arch is an architecture of its name") {
  std::set<std::string> files, names;
  for (const auto& entry : std::filesystem::directory_iterator(MOE_DIAG_SOURCE_DIR "/core/arch"))
    if (entry.path().extension() == ".cpp" && entry.path().stem() != "architecture")
      files.insert(entry.path().stem().string());
  for (const Architecture* a : architectures()) {
    std::string name(a->name);
    std::replace(name.begin(), name.end(), '-', '_');  // as C++ writes it
    names.insert(name);
  }
  CHECK(names == files);
  CHECK(names.size() == architectures().size());
}

TEST_CASE("every preset of an architecture has a program that reads each of its tensors, in the order of the file") {
  for (const Architecture* a : architectures()) {
    for (const SyntheticPreset& preset : a->presets) {
      if (preset.config.layers > 8) continue;  // of full size
      const Model model = Model::synthetic({std::string(preset.name), 0, "f32", 1});
      CHECK(&model.architecture() == a);
      std::map<const Weight*, int> times;
      for (const Step& step : build_program(model))
        for (std::size_t i = 0; i < step.weights.size(); ++i) {
          ++times[step.weights[i]];
          if (step.bias(i)) ++times[step.bias(i)];
        }
      for (const Weight& weight : model.view().weights) {
        INFO(weight.name);
        CHECK(times[&weight] == 1);
      }
      CHECK(times.size() == model.view().weights.size());
    }
  }
}

namespace {

// GGUF's name of a weight within its layer: "attn_q" of "blk.2.attn_q.weight".
std::string role_of(const Weight& weight) {
  std::string name(weight.name);
  if (name.starts_with("blk.")) name.erase(0, name.find('.', 4) + 1);
  return name.substr(0, name.rfind(".weight"));
}

void check_row(const Step& step, Stage stage) {
  const StageInfo& row = info(stage);
  INFO(row.name << ", layer " << step.layer);
  CHECK(row.op == step.op);
  CHECK((row.scope == Scope::layer) == (step.layer >= 0));
  std::vector<std::string> read, named;
  for (const Weight* weight : step.weights) read.push_back(role_of(*weight));
  for (const std::string_view role : row.weights)
    if (!role.empty()) named.emplace_back(role);
  CHECK(read == named);
}

}  // namespace

TEST_CASE("a program writes the stages of its table, each once a layer, in the table's order and by its operators") {
  for (const Architecture* a : architectures()) {
    const Model model = Model::synthetic({std::string(a->presets[0].name), 0, "f32", 1});
    REQUIRE(model.config().stages.begin() == a->stages.begin());
    std::map<int, std::vector<std::size_t>> written;  // by layer, in forward order
    for (const Step& step : build_program(model))
      for (const Stage stage : step.out) {
        check_row(step, stage);
        written[is_of_head(stage) ? model.config().layers : step.layer].push_back(stage.index());
      }
    std::size_t in_layers = 0;
    for (const Stage stage : a->stages) in_layers += info(stage).scope == Scope::layer;
    for (const auto& [layer, indices] : written) {
      INFO(a->name << ", layer " << layer);
      CHECK(std::is_sorted(indices.begin(), indices.end()));
      CHECK(std::adjacent_find(indices.begin(), indices.end()) == indices.end());
      if (layer >= 0 && layer < model.config().layers) CHECK(indices.size() == in_layers);
    }
  }
}

TEST_CASE("a role with a dot is a whole name") {
  CHECK(TensorSpec{.role = "attn_q", .layer = 2}.name() == "blk.2.attn_q.weight");
  CHECK(TensorSpec{.role = "attn_q.bias", .layer = 2}.name() == "blk.2.attn_q.bias");
  CHECK(TensorSpec{.role = "ffn_down_exps.scale", .layer = 0}.name() == "blk.0.ffn_down_exps.scale");
  CHECK(TensorSpec{.role = "rope_freqs"}.name() == "rope_freqs.weight");
}

TEST_CASE("a step of a layer may read a weight of no layer; what the architecture lacks is refused") {
  const ModelConfig config = Model::synthetic({}).config();
  const Weight shared, own;
  ProgramBuilder builder(config, [&](std::string_view role, int layer) -> const Weight* {
    if (role == "attn_norm" && layer == 1) return &own;
    return role == "rope_freqs" && layer == -1 ? &shared : nullptr;
  });
  builder.add(1, Op::rms_norm, {"embedding"}, {"attn_norm"}, {"attn_norm"});
  builder.add(1, Op::rope, {"q_norm"}, {"rope_freqs"}, {"q_post_rope"});
  CHECK_THROWS_WITH(builder.add(0, Op::rms_norm, {"embedding"}, {"attn_norm"}, {"attn_norm"}),
                    "the architecture has no weight 'attn_norm'");
  CHECK_THROWS_WITH(builder.add(1, Op::add, {"q_nrom"}, {}, {"q_norm"}), "the architecture has no stage 'q_nrom'");
  CHECK_THROWS_WITH(builder.read_cache("latent", 1), "the architecture has no cache 'latent'");
  const Program program = builder.take();
  CHECK(program[0].weights[0] == &own);
  CHECK(program[1].weights[0] == &shared);
}

TEST_CASE("stages of all architectures are found by name, and two that share a name are of one kind") {
  for (const Architecture* a : architectures())
    for (const Stage stage : a->stages) {
      const Stage other = all_stages().find(name_of(stage));
      INFO(name_of(stage));
      REQUIRE(other);
      CHECK(info(other).role == info(stage).role);
      CHECK(info(other).scope == info(stage).scope);
      CHECK(info(other).alias == info(stage).alias);
    }
}

}  // namespace moe_diag
