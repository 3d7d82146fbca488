// SPDX-License-Identifier: MIT
// Qwen2-MoE and Qwen1.5-MoE: biases on queries, keys and values, experts whose weights are not renormalised, and beside
// them a shared expert that every row goes through, weighed by a sigmoid of its own.
#include <array>

#include "core/arch/architecture.hpp"
#include "core/arch/shared/layers.hpp"
#include "core/arch/shared/sizes.hpp"
#include "core/arch/shared/stage_rows.hpp"

namespace moe_diag {

extern const Architecture qwen2moe;

namespace {

enum Own : std::size_t { shared_width };  // of ModelConfig::own
constexpr std::string_view own_names[] = {"shared_expert_width"};

std::int64_t shared_width_of(const ModelConfig& c) { return static_cast<std::int64_t>(c.own[shared_width]); }

constexpr Dim shared{"fs", [](const ModelConfig& c, int) -> std::int64_t { return shared_width_of(c); }};
constexpr Dim one{"1", [](const ModelConfig&, int) -> std::int64_t { return 1; }};

constexpr StageInfo router_weights = [] {
  StageInfo row = rows::moe_router_weights;
  row.llama_cpp = "ffn_moe_weights";
  row.sums_to_one = false;
  return row;
}();
constexpr StageInfo routed_out = [] {
  StageInfo row = rows::moe_ffn_out;
  row.hf = "mlp.experts";
  return row;
}();

// Sources of the foreign names: llama.cpp src/models/qwen2moe.cpp; transformers
// models/qwen2_moe/modeling_qwen2_moe.py.
// clang-format off
constexpr auto stage_rows = numbered(std::array{
    rows::embedding, rows::attn_norm, rows::qkv_matmul, rows::q_post_rope, rows::k_post_rope, rows::attn_scores,
    rows::attn_softmax, rows::attention, rows::attn_out, rows::post_attn_residual, rows::ffn_norm,
    rows::moe_router_logits, rows::moe_router_probs, rows::moe_router_indices, router_weights, rows::moe_expert_gate,
    rows::moe_expert_up, rows::moe_expert_swiglu, rows::moe_expert_out, rows::moe_expert_weighted, routed_out,
    StageInfo{.name = "moe_shared_gate", .op = Op::linear, .row = {shared}, .weights = {"ffn_gate_shexp"},
              .llama_cpp = "ffn_gate", .hf = "mlp.shared_expert.gate_proj"},
    StageInfo{.name = "moe_shared_up", .op = Op::linear, .row = {shared}, .weights = {"ffn_up_shexp"},
              .llama_cpp = "ffn_up", .hf = "mlp.shared_expert.up_proj"},
    StageInfo{.name = "moe_shared_swiglu", .op = Op::swiglu, .row = {shared}, .llama_cpp = "ffn_swiglu",
              .hf = "input of mlp.shared_expert.down_proj"},
    StageInfo{.name = "moe_shared_out", .op = Op::linear, .row = {dims::hidden}, .weights = {"ffn_down_shexp"},
              .llama_cpp = "ffn_shexp", .hf = "mlp.shared_expert"},
    StageInfo{.name = "moe_shared_logit", .op = Op::linear, .row = {one}, .weights = {"ffn_gate_inp_shexp"},
              .llama_cpp = "ffn_shexp_gate_inp", .hf = "mlp.shared_expert_gate"},
    StageInfo{.name = "moe_shared_weighted", .op = Op::sigmoid_gate, .row = {dims::hidden},
              .llama_cpp = "ffn_shexp_out"},
    StageInfo{.name = "ffn_out", .op = Op::add, .row = {dims::hidden}, .llama_cpp = "ffn_out", .hf = "mlp"},
    rows::post_ffn_residual, rows::final_norm, rows::lm_head});
// clang-format on

constexpr std::string_view known_keys[] = {"expert_feed_forward_length", "expert_shared_feed_forward_length"};
constexpr MetadataSwitch switches[] = {
    {"expert_weights_norm", 0, 0, "experts' weights that are renormalised to sum 1"},
    {"expert_shared_count", 1, 0, "several shared experts"},
};

ModelConfig read_config(const GgufFile& file) {
  const MetadataReader metadata(file, qwen2moe.name);
  sizes::refuse_others(metadata, known_keys, switches);
  ModelConfig config = sizes::read(file, metadata, sizes::HeadDim::by_default);
  // llama.cpp derives both widths from feed_forward_length where their keys are absent.
  const bool has_dense = file.find(metadata.full("feed_forward_length")) != nullptr;
  std::optional<int> dense;
  if (has_dense) dense = metadata.size("feed_forward_length");
  sizes::read_expert_widths(file, metadata, dense ? std::optional(*dense / config.used) : std::nullopt, config);
  const bool is_stated = file.find(metadata.full("expert_shared_feed_forward_length")) || !dense;
  config.own.resize(std::size(own_names));
  config.own[shared_width] = is_stated ? metadata.size("expert_shared_feed_forward_length") : *dense;
  return config;
}

void add_config(GgufHeader& header, const ModelConfig& config, int dense_width) {
  sizes::add(header, qwen2moe.name, config, dense_width);
  sizes::add_expert_widths(header, qwen2moe.name, config);
  header.add("qwen2moe.expert_shared_feed_forward_length", static_cast<std::uint32_t>(shared_width_of(config)));
  header.add("qwen2moe.vocab_size", static_cast<std::uint32_t>(config.vocab));
}

std::vector<TensorSpec> layer_tensors(const ModelConfig& c, int l) {
  const std::int64_t width = shared_width_of(c);
  std::vector<TensorSpec> specs = layers::attention_tensors(l, c);
  for (const auto& [role, rows] : {std::pair<std::string_view, int>{"attn_q.bias", c.q_width()},
                                   {"attn_k.bias", c.kv_width()},
                                   {"attn_v.bias", c.kv_width()}})
    specs.push_back(layers::bias_tensor(l, role, rows, 0.5f));
  for (TensorSpec& spec : layers::expert_tensors(l, c)) specs.push_back(spec);
  specs.push_back({.role = "ffn_gate_inp_shexp", .layer = l, .kind = TensorKind::gate, .cols = c.hidden, .rank = 1});
  specs.push_back(layers::matrix_tensor(l, "ffn_gate_shexp", c.hidden, width, 1.5f));
  specs.push_back(layers::matrix_tensor(l, "ffn_up_shexp", c.hidden, width));
  specs.push_back(layers::matrix_tensor(l, "ffn_down_shexp", width, c.hidden));
  return specs;
}

void add_shared_expert(ProgramBuilder& p, int l) {
  p.add(l, Op::linear, {"ffn_norm"}, {"ffn_gate_shexp"}, {"moe_shared_gate"});
  p.add(l, Op::linear, {"ffn_norm"}, {"ffn_up_shexp"}, {"moe_shared_up"});
  p.add(l, Op::swiglu, {"moe_shared_gate", "moe_shared_up"}, {}, {"moe_shared_swiglu"});
  p.add(l, Op::linear, {"moe_shared_swiglu"}, {"ffn_down_shexp"}, {"moe_shared_out"});
  p.add(l, Op::linear, {"ffn_norm"}, {"ffn_gate_inp_shexp"}, {"moe_shared_logit"});
  p.add(l, Op::sigmoid_gate, {"moe_shared_out", "moe_shared_logit"}, {}, {"moe_shared_weighted"});
}

void add_layer(ProgramBuilder& p, int l, std::string_view x) {
  const ModelConfig& c = p.config();
  p.norm(l, x, "attn_norm", "attn_norm", c.hidden);
  p.add(l, Op::linear, {"attn_norm"}, {"attn_q", "attn_k", "attn_v"}, {"qkv_matmul"});
  p.add(l, Op::rope, {"qkv_matmul"}, {}, {"q_post_rope"}) = RopeParams{.head_dim = c.head_dim, .theta = c.rope_theta};
  p.add(l, Op::rope, {"qkv_matmul"}, {}, {"k_post_rope"}) = RopeParams{c.q_width(), c.head_dim, c.rope_theta};
  layers::add_attention(p, l, x);
  p.norm(l, "post_attn_residual", "ffn_norm", "ffn_norm", c.hidden);
  layers::add_experts(p, l, /*renormalised=*/false);
  add_shared_expert(p, l);
  p.add(l, Op::add, {"moe_ffn_out", "moe_shared_weighted"}, {}, {"ffn_out"});
  p.add(l, Op::add, {"post_attn_residual", "ffn_out"}, {}, {"post_ffn_residual"});
}

void add_steps(ProgramBuilder& p) { layers::add_steps(p, add_layer); }

const ModelConfig tiny{.layers = 4,
                       .hidden = 256,
                       .heads = 4,
                       .kv_heads = 2,
                       .head_dim = 64,
                       .experts = 12,
                       .used = 3,
                       .expert_width = 256,
                       .vocab = 512,
                       .context = 4096,
                       .rms_eps = 1e-6f,
                       .rope_theta = 1e6f,
                       .own = {512}};
// config.json of Qwen/Qwen1.5-MoE-A2.7B.
const ModelConfig a27b{.layers = 24,
                       .hidden = 2048,
                       .heads = 16,
                       .kv_heads = 16,
                       .head_dim = 128,
                       .experts = 60,
                       .used = 4,
                       .expert_width = 1408,
                       .vocab = 151936,
                       .context = 8192,
                       .rms_eps = 1e-6f,
                       .rope_theta = 1e6f,
                       .own = {5632}};
const std::array presets{SyntheticPreset{"tiny-qwen2moe", "Synthetic tiny Qwen2-MoE", tiny, 512},
                         SyntheticPreset{"qwen1.5-moe-a2.7b", "Synthetic Qwen1.5-MoE-A2.7B", a27b, 5632}};

}  // namespace

const Architecture qwen2moe{
    .name = "qwen2moe",
    .dense = "qwen2",
    .stages = Stages(stage_rows),
    .caches = Caches(kv_caches),
    .read_config = read_config,
    .add_config = add_config,
    .first_tensors = layers::first_tensors,
    .layer_tensors = layer_tensors,
    .last_tensors = layers::last_tensors,
    .add_steps = add_steps,
    .presets = presets,
    .own = own_names,
};

}  // namespace moe_diag
