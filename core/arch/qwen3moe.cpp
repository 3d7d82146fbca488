// SPDX-License-Identifier: MIT
// Qwen3-MoE: every layer has attention with a norm on each head of queries and keys, and experts chosen by a softmax
// over all of them, whose weights are renormalised.
//
// The only file that knows this architecture. The build finds it by its name, and everything else works on what the
// constant at the end gives: a table of stages, metadata read and written, tensors by role, the steps of the forward
// pass, and synthetic models to test it with. It only describes. docs/new-architecture.md has the recipe.
#include <array>

#include "core/arch/architecture.hpp"
#include "core/arch/shared/layers.hpp"
#include "core/arch/shared/sizes.hpp"
#include "core/arch/shared/stage_rows.hpp"

namespace moe_diag {

extern const Architecture qwen3moe;

namespace {

constexpr auto stage_rows = numbered(std::array{rows::embedding,
                                                rows::attn_norm,
                                                rows::qkv_matmul,
                                                rows::q_norm,
                                                rows::k_norm,
                                                rows::q_post_rope,
                                                rows::k_post_rope,
                                                rows::attn_scores,
                                                rows::attn_softmax,
                                                rows::attention,
                                                rows::attn_out,
                                                rows::post_attn_residual,
                                                rows::ffn_norm,
                                                rows::moe_router_logits,
                                                rows::moe_router_probs,
                                                rows::moe_router_indices,
                                                rows::moe_router_weights,
                                                rows::moe_expert_gate,
                                                rows::moe_expert_up,
                                                rows::moe_expert_swiglu,
                                                rows::moe_expert_out,
                                                rows::moe_expert_weighted,
                                                rows::moe_ffn_out,
                                                rows::post_ffn_residual,
                                                rows::final_norm,
                                                rows::lm_head});

// Keys beside those that sizes::read() reads; any other is refused.
constexpr std::string_view known_keys[] = {"expert_feed_forward_length"};
// Keys that are refused unless they have one of these two values, which are what is computed here.
constexpr MetadataSwitch switches[] = {
    {"expert_weights_norm", 1, 1, "experts' weights that are not renormalised to sum 1"},
    {"expert_shared_count", 0, 0, "shared experts"},
    {"expert_shared_feed_forward_length", 0, 0, "shared experts"},
};

ModelConfig read_config(const GgufFile& file) {
  const MetadataReader metadata(file, qwen3moe.name);
  sizes::refuse_others(metadata, known_keys, switches);
  ModelConfig config = sizes::read(file, metadata, sizes::HeadDim::stated);
  sizes::read_expert_widths(file, metadata, std::nullopt, config);
  return config;
}

void add_config(GgufHeader& header, const ModelConfig& config, int dense_width) {
  sizes::add(header, qwen3moe.name, config, dense_width);
  sizes::add_expert_widths(header, qwen3moe.name, config);
  header.add("qwen3moe.vocab_size", static_cast<std::uint32_t>(config.vocab));
}

std::vector<TensorSpec> layer_tensors(const ModelConfig& c, int l) {
  std::vector<TensorSpec> specs = layers::attention_tensors(l, c);
  // Before the projection of the attention output, which is the last.
  specs.insert(specs.end() - 1,
               {layers::norm_tensor(l, "attn_q_norm", c.head_dim, 1.5f),  // so that attention is not uniform
                layers::norm_tensor(l, "attn_k_norm", c.head_dim, 1.5f)});
  for (TensorSpec& spec : layers::expert_tensors(l, c)) specs.push_back(spec);
  return specs;
}

void add_layer(ProgramBuilder& p, int l, std::string_view x) {
  const ModelConfig& c = p.config();
  p.norm(l, x, "attn_norm", "attn_norm", c.hidden);
  p.add(l, Op::linear, {"attn_norm"}, {"attn_q", "attn_k", "attn_v"}, {"qkv_matmul"});
  p.norm(l, "qkv_matmul", "attn_q_norm", "q_norm", c.head_dim);  // of each head
  p.norm(l, "qkv_matmul", "attn_k_norm", "k_norm", c.head_dim, c.q_width());
  p.add(l, Op::rope, {"q_norm"}, {}, {"q_post_rope"}) = RopeParams{.head_dim = c.head_dim, .theta = c.rope_theta};
  p.add(l, Op::rope, {"k_norm"}, {}, {"k_post_rope"}) = RopeParams{.head_dim = c.head_dim, .theta = c.rope_theta};
  layers::add_attention(p, l, x);
  p.norm(l, "post_attn_residual", "ffn_norm", "ffn_norm", c.hidden);
  layers::add_experts(p, l, /*renormalised=*/true);
  p.add(l, Op::add, {"post_attn_residual", "moe_ffn_out"}, {}, {"post_ffn_residual"});
}

void add_steps(ProgramBuilder& p) { layers::add_steps(p, add_layer); }

// ---- synthetic models ----------------------------------------------------------------------------------------------

// `tiny` keeps what breaks real code: heads together wider than hidden, few kv heads, experts no power of two.
const ModelConfig tiny{.layers = 4,
                       .hidden = 256,
                       .heads = 8,
                       .kv_heads = 2,
                       .head_dim = 64,
                       .experts = 12,
                       .used = 3,
                       .expert_width = 256,
                       .vocab = 512,
                       .context = 4096,
                       .rms_eps = 1e-6f,
                       .rope_theta = 1e6f};
// config.json of Qwen/Qwen3-30B-A3B.
const ModelConfig a3b{.layers = 48,
                      .hidden = 2048,
                      .heads = 32,
                      .kv_heads = 4,
                      .head_dim = 128,
                      .experts = 128,
                      .used = 8,
                      .expert_width = 768,
                      .vocab = 151936,
                      .context = 40960,
                      .rms_eps = 1e-6f,
                      .rope_theta = 1e6f};
const std::array presets{SyntheticPreset{"tiny", "Synthetic tiny Qwen3-MoE", tiny, 512},
                         SyntheticPreset{"qwen3-30b-a3b", "Synthetic Qwen3-30B-A3B", a3b, 6144}};

}  // namespace

const Architecture qwen3moe{
    .name = "qwen3moe",
    .dense = "qwen3",
    .stages = Stages(stage_rows),
    .caches = Caches(kv_caches),
    .read_config = read_config,
    .add_config = add_config,
    .first_tensors = layers::first_tensors,
    .layer_tensors = layer_tensors,
    .last_tensors = layers::last_tensors,
    .add_steps = add_steps,
    .presets = presets,
};

}  // namespace moe_diag
