// SPDX-License-Identifier: MIT
#include "core/conformance/tried_models.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "core/model/synthetic.hpp"
#include "core/ops/operator.hpp"

namespace moe_diag {
namespace {

// Rows of whole blocks, an odd number of them where a block is short, and sizes that no tile divides.
ModelConfig sizes_for(ModelConfig c, int block) {
  c.layers = 1;
  c.experts = 7;
  c.used = 3;
  c.vocab = 131;
  c.context = 1024;
  c.kv_heads = 2;
  if (block == 256) {
    c.hidden = 512;
    c.expert_width = 256;
    c.heads = 4;
    c.head_dim = 64;
    c.experts = 5;
    c.used = 2;
  } else if (block == 32) {
    c.hidden = 96;
    c.expert_width = 160;
    c.heads = 4;
    c.head_dim = 40;
  } else {
    c.hidden = 100;
    c.expert_width = 37;
    c.heads = 6;
    c.head_dim = 10;
  }
  return c;
}

int block_of(std::string_view quant) {
  for (const BlockInfo& block : block_table) {
    std::string name(block.name);
    std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::tolower(c); });
    if (name == quant) return block.elements;
  }
  return 256;  // a mix
}

// The same work for a kernel: operator, parameters, types and sizes.
bool is_same(const Step& a, const Step& b, const ModelConfig& config) {
  if (a.op != b.op || a.weights.size() != b.weights.size() || !(a.params == b.params)) return false;
  if (a.weights.size() == 0 || a.in.size() != b.in.size()) return false;
  for (std::size_t i = 0; i < a.weights.size(); ++i) {
    const Weight &x = *a.weights[i], &y = *b.weights[i];
    if (x.type != y.type || x.cols != y.cols || x.rows != y.rows || (a.bias(i) != nullptr) != (b.bias(i) != nullptr))
      return false;
  }
  for (std::size_t i = 0; i < a.in.size(); ++i)
    if (!(config.shape_of({a.in[i], a.layer}, 1, 1) == config.shape_of({b.in[i], b.layer}, 1, 1))) return false;
  return true;
}

// One for each size of blocks: a model in this mix of types, and one in this type, are common.
bool is_of_whole_passes(std::string_view quant) { return quant == "q4_k_m" || quant == "q8_0"; }

TriedModel model_of(const SyntheticSpec& spec, std::string name, bool is_whole) {
  Model model = Model::synthetic(spec, 1);
  Program program = build_program(model);
  return {std::move(name), std::move(model), std::move(program), is_whole, {}};
}

template <class Is>
void choose_steps(TriedModel& tried, Is is_tried) {
  const Program& program = tried.program;
  for (std::size_t i = 0; i < program.size(); ++i) {
    const bool is_new = std::none_of(tried.steps.begin(), tried.steps.end(), [&](std::size_t earlier) {
      return is_same(program[earlier], program[i], tried.config());
    });
    if (is_new && is_tried(program[i])) tried.steps.push_back(i);
  }
}

bool reads_type(const Step& step, BlockType type) {
  const WeightRows rows = operator_of(step).weights;
  return rows != WeightRows::none && rows != WeightRows::one &&
         std::any_of(step.weights.begin(), step.weights.end(), [&](const Weight* w) { return w->type == type; });
}

std::vector<TriedModel> make_models() {
  std::vector<TriedModel> models;
  for (const Architecture* architecture : architectures()) {
    const SyntheticPreset& preset = architecture->presets.front();
    SyntheticSpec spec{.preset = std::string(preset.name), .quant = "f32", .seed = 3};
    spec.sizes = sizes_for(preset.config, 1);
    models.push_back(model_of(spec, std::string(architecture->name) + ", F32", true));
    choose_steps(models.back(), [](const Step&) { return true; });
  }
  const SyntheticPreset& preset = architectures().back()->presets.front();
  for (const std::string_view quant : synthetic_quants()) {
    if (quant == "f32") continue;
    SyntheticSpec spec{.preset = std::string(preset.name), .quant = std::string(quant), .seed = 3};
    spec.sizes = sizes_for(preset.config, block_of(quant));
    models.push_back(model_of(spec, "", is_of_whole_passes(quant)));
    TriedModel& tried = models.back();
    const BlockType type = tried.model.weight("token_embd").type;
    const bool is_mix = tried.model.weight("output").type != type;
    tried.name = is_mix ? fmt::format("{}, types mixed as {}", architectures().back()->name, quant)
                        : fmt::format("{}, {}", architectures().back()->name, moe_diag::name_of(type));
    choose_steps(tried, [&](const Step& step) {
      if (tried.is_whole) return true;
      return reads_type(step, type);
    });
  }
  return models;
}

}  // namespace

const std::vector<TriedModel>& tried_models() {
  static const std::vector<TriedModel> models = make_models();
  return models;
}

std::string types_of(const Step& step) {
  std::string types;
  std::set<BlockType> seen;
  for (const Weight* weight : step.weights)
    if (seen.insert(weight->type).second) {
      types += types.empty() ? "" : " and ";
      types += name_of(weight->type);
    }
  return types;
}

}  // namespace moe_diag
