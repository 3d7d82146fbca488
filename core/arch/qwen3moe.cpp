// SPDX-License-Identifier: MIT
// Qwen3-MoE: every layer has attention with a norm on each head of queries and keys, and experts chosen by a softmax
// over all of them, whose weights are renormalised.
#include <fmt/format.h>

#include <array>
#include <cmath>

#include "core/arch/architecture.hpp"
#include "core/gguf/metadata_reader.hpp"

namespace moe_diag {

extern const Architecture qwen3moe;

namespace {

constexpr std::int64_t largest_width = 1 << 30;  // of a row

// ---- metadata ------------------------------------------------------------------------------------------------------

// Keys that are read into the configuration, or say nothing about what is computed.
constexpr std::string_view known_keys[] = {
    "block_count",
    "context_length",
    "embedding_length",
    "vocab_size",
    "feed_forward_length",  // of dense layers; there are none
    "expert_feed_forward_length",
    "expert_count",
    "expert_used_count",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.freq_base",
    "rope.dimension_count",
    "rope.scaling.original_context_length",  // speaks of how scaling was made; scaling itself is refused
    "rope.scaling.finetuned",
};

constexpr MetadataSwitch switches[] = {
    {"expert_weights_scale", 1, 0, "a scale of the experts' weights"},
    {"expert_weights_norm", 1, 1, "experts' weights that are not renormalised to sum 1"},
    {"expert_gating_func", 1, 0, "a gating function other than softmax"},
    {"expert_shared_count", 0, 0, "shared experts"},
    {"expert_shared_feed_forward_length", 0, 0, "shared experts"},
    {"expert_chunk_feed_forward_length", 0, 0, "chunked experts"},
    {"expert_group_count", 0, 1, "experts chosen by group"},
    {"expert_group_used_count", 0, 1, "experts chosen by group"},
    {"expert_group_scale", 0, 1, "experts scaled by group"},
    {"experts_per_group", 0, 0, "experts chosen by group"},
    {"leading_dense_block_count", 0, 0, "dense layers"},
    {"moe_every_n_layers", 0, 1, "dense layers between"},
    {"interleave_moe_layer_step", 0, 1, "dense layers between"},
    {"moe_latent_size", 0, 0, "experts in a latent space"},
    {"nextn_predict_layers", 0, 0, "layers that predict further tokens"},
    {"n_deepstack_layers", 0, 0, "deepstack layers"},
    {"use_parallel_residual", 0, 0, "parallel residuals"},
    {"pooling_type", 0, 0, "pooling"},
    {"logit_scale", 0, 1, "a scale of the logits"},
    {"residual_scale", 0, 1, "a scale of the residuals"},
    {"embedding_scale", 0, 1, "a scale of the embedding"},
    {"attn_logit_softcapping", 0, 0, "capped attention scores"},
    {"router_logit_softcapping", 0, 0, "capped router logits"},
    {"final_logit_softcapping", 0, 0, "capped logits"},
    {"swin_norm", 0, 0, "another order of norms"},
    {"attention.causal", 1, 1, "attention that looks ahead"},
    {"attention.scale", 0, 0, "a scale of the scores other than 1/sqrt(head_dim)"},
    {"attention.output_scale", 0, 1, "a scale of the attention"},
    {"attention.temperature_scale", 0, 1, "a temperature of the attention"},
    {"attention.temperature_length", 0, 0, "a temperature of the attention"},
    {"attention.sliding_window", 0, 0, "a sliding window"},
    {"attention.sliding_window_pattern", 0, 0, "a sliding window"},
    {"attention.shared_kv_layers", 0, 0, "layers that share keys and values"},
    {"attention.clamp_kqv", 0, 0, "clamped queries, keys and values"},
    {"attention.max_alibi_bias", 0, 0, "ALiBi"},
    {"rope.scaling.factor", 0, 1, "RoPE scaling"},
    {"rope.scaling.attn_factor", 0, 1, "RoPE scaling"},
    {"rope.scale_linear", 0, 1, "RoPE scaling"},
};

void check_heads(const GgufFile& file, const MetadataReader& metadata, const ModelConfig& c) {
  if (c.heads % c.kv_heads != 0)
    refuse_file(file, "metadata key '{}' is {}, expected a divisor of the {} heads",
                metadata.full("attention.head_count_kv"), c.kv_heads, c.heads);
  if (c.head_dim % 2 != 0)
    refuse_file(file, "metadata key '{}' is {}, expected an even number: RoPE turns pairs",
                metadata.full("attention.key_length"), c.head_dim);
  for (const std::string_view key : {"attention.value_length", "rope.dimension_count"}) {
    const auto value = file.integer(metadata.full(key));
    if (value && *value != c.head_dim)
      refuse_file(file, "metadata key '{}' is {}, expected {}, the value of '{}': other sizes are not supported",
                  metadata.full(key), *value, c.head_dim, metadata.full("attention.key_length"));
  }
  const std::int64_t width = (std::int64_t{c.heads} + 2 * std::int64_t{c.kv_heads}) * c.head_dim;
  if (width > largest_width)
    refuse_file(file, "{} heads and {} kv heads of {} make rows of {} values, expected {} at most", c.heads, c.kv_heads,
                c.head_dim, width, largest_width);
}

// The vocabulary is as large as the embedding's table, which a part may lack.
int read_vocab(const GgufFile& file, const MetadataReader& metadata) {
  const GgufTensor* table = file.find_tensor("token_embd.weight");
  if (table == nullptr && is_part(file)) return metadata.size("vocab_size");
  if (table == nullptr) refuse_file(file, "tensor token_embd.weight is missing");
  if (table->dims[1] > MetadataReader::largest_size)
    refuse_file(file, "tensor token_embd.weight has {} rows, expected {} at most", table->dims[1],
                MetadataReader::largest_size);
  const auto stated = file.integer(metadata.full("vocab_size"));
  if (stated && *stated != table->dims[1])
    refuse_file(file, "metadata key '{}' is {}, but tensor token_embd.weight has {} rows", metadata.full("vocab_size"),
                *stated, table->dims[1]);
  return static_cast<int>(table->dims[1]);
}

ModelConfig read_config(const GgufFile& file) {
  const MetadataReader metadata(file, qwen3moe.name);
  metadata.refuse_others(known_keys, switches);
  ModelConfig c;
  c.layers = metadata.size("block_count");
  c.hidden = metadata.size("embedding_length");
  c.heads = metadata.size("attention.head_count");
  c.kv_heads = metadata.size("attention.head_count_kv");
  c.head_dim = metadata.size("attention.key_length");
  c.experts = metadata.size("expert_count");
  c.used = metadata.size("expert_used_count");
  c.expert_width = metadata.size("expert_feed_forward_length");
  c.context = metadata.size("context_length");
  c.rms_eps = metadata.positive("attention.layer_norm_rms_epsilon");
  c.rope_theta = metadata.positive("rope.freq_base");
  c.vocab = read_vocab(file, metadata);
  c.tied_output = file.find_tensor("output.weight") == nullptr;
  check_heads(file, metadata, c);
  if (c.used > c.experts)
    refuse_file(file, "metadata key '{}' is {}, expected at most the {} experts of '{}'",
                metadata.full("expert_used_count"), c.used, c.experts, metadata.full("expert_count"));
  return c;
}

void add_config(GgufHeader& header, const ModelConfig& config, int dense_width) {
  const auto add = [&](std::string_view key, int value) {
    header.add(fmt::format("qwen3moe.{}", key), static_cast<std::uint32_t>(value));
  };
  add("block_count", config.layers);
  add("context_length", config.context);
  add("embedding_length", config.hidden);
  add("feed_forward_length", dense_width);
  add("attention.head_count", config.heads);
  add("attention.head_count_kv", config.kv_heads);
  add("attention.key_length", config.head_dim);
  add("attention.value_length", config.head_dim);
  header.add("qwen3moe.attention.layer_norm_rms_epsilon", config.rms_eps);
  header.add("qwen3moe.rope.freq_base", config.rope_theta);
  add("expert_count", config.experts);
  add("expert_used_count", config.used);
  add("expert_feed_forward_length", config.expert_width);
  add("vocab_size", config.vocab);
}

// ---- tensors -------------------------------------------------------------------------------------------------------

std::vector<TensorSpec> first_tensors(const ModelConfig& c) {
  return {{.role = "token_embd", .kind = TensorKind::table, .cols = c.hidden, .rows = c.vocab}};
}

std::vector<TensorSpec> layer_tensors(const ModelConfig& c, int l) {
  const auto norm = [l](std::string_view role, std::int64_t width, float size) {
    return TensorSpec{.role = role, .layer = l, .kind = TensorKind::norm, .cols = width, .rank = 1, .gain = size};
  };
  const auto matrix = [l](std::string_view role, std::int64_t cols, std::int64_t rows, float gain = 1) {
    return TensorSpec{.role = role, .layer = l, .cols = cols, .rows = rows, .gain = gain};
  };
  const auto experts = [&](std::string_view role, std::int64_t cols, std::int64_t rows, float gain) {
    TensorSpec spec = matrix(role, cols, rows, gain);
    spec.experts = c.experts;
    spec.rank = 3;
    return spec;
  };
  TensorSpec values = matrix("attn_v", c.hidden, c.kv_width());
  values.more_bits = true;
  TensorSpec router = matrix("ffn_gate_inp", c.hidden, c.experts, 1.5f);
  router.kind = TensorKind::router;
  TensorSpec down = experts("ffn_down_exps", c.expert_width, c.hidden, 1.2f);
  down.more_bits = down.massive = true;
  return {norm("attn_norm", c.hidden, 1),
          matrix("attn_q", c.hidden, c.q_width()),
          matrix("attn_k", c.hidden, c.kv_width()),
          values,
          norm("attn_q_norm", c.head_dim, 1.5f),  // so that attention is not uniform
          norm("attn_k_norm", c.head_dim, 1.5f),
          matrix("attn_output", c.q_width(), c.hidden, 0.6f),
          norm("ffn_norm", c.hidden, 1),
          router,
          experts("ffn_gate_exps", c.hidden, c.expert_width, 1.5f),
          experts("ffn_up_exps", c.hidden, c.expert_width, 1),
          down};
}

std::vector<TensorSpec> last_tensors(const ModelConfig& c) {
  std::vector<TensorSpec> specs{{.role = "output_norm", .kind = TensorKind::norm, .cols = c.hidden, .rank = 1}};
  if (!c.tied_output)
    specs.push_back({.role = "output", .kind = TensorKind::head, .cols = c.hidden, .rows = c.vocab, .gain = 2.5f});
  return specs;
}

// ---- the forward pass ----------------------------------------------------------------------------------------------

// One decoder layer, which reads stage x; returns the stage that holds its output.
Stage add_layer(ProgramBuilder& p, int l, Stage x) {
  const ModelConfig& c = p.config();
  using enum Stage;

  p.norm(l, x, "attn_norm", attn_norm, c.hidden);
  p.add(l, Op::linear, {attn_norm}, {"attn_q", "attn_k", "attn_v"}, {qkv_matmul});
  p.norm(l, qkv_matmul, "attn_q_norm", q_norm, c.head_dim);  // of each head
  p.norm(l, qkv_matmul, "attn_k_norm", k_norm, c.head_dim, c.q_width());
  p.add(l, Op::rope, {q_norm}, {}, {q_post_rope}).theta = c.rope_theta;
  p.add(l, Op::rope, {k_norm}, {}, {k_post_rope}).theta = c.rope_theta;
  p.add(l, Op::scores, {q_post_rope, k_post_rope}, {}, {attn_scores}).scale = 1 / std::sqrt(c.head_dim);
  p.add(l, Op::softmax, {attn_scores}, {}, {attn_softmax}).causal = true;
  p.add(l, Op::mix, {attn_softmax, qkv_matmul}, {}, {attention}).offset = c.q_width() + c.kv_width();
  p.add(l, Op::linear, {attention}, {"attn_output"}, {attn_out});
  p.add(l, Op::add, {x, attn_out}, {}, {post_attn_residual});

  p.norm(l, post_attn_residual, "ffn_norm", ffn_norm, c.hidden);
  p.add(l, Op::linear, {ffn_norm}, {"ffn_gate_inp"}, {moe_router_logits});
  p.add(l, Op::softmax, {moe_router_logits}, {}, {moe_router_probs});
  p.add(l, Op::topk, {moe_router_probs}, {}, {moe_router_indices, moe_router_weights});
  p.add(l, Op::expert_linear, {ffn_norm, moe_router_indices}, {"ffn_gate_exps"}, {moe_expert_gate});
  p.add(l, Op::expert_linear, {ffn_norm, moe_router_indices}, {"ffn_up_exps"}, {moe_expert_up});
  p.add(l, Op::swiglu, {moe_expert_gate, moe_expert_up}, {}, {moe_expert_swiglu});
  p.add(l, Op::expert_linear, {moe_expert_swiglu, moe_router_indices}, {"ffn_down_exps"}, {moe_expert_out});
  p.add(l, Op::weigh, {moe_expert_out, moe_router_weights}, {}, {moe_expert_weighted});
  p.add(l, Op::combine, {moe_expert_weighted}, {}, {moe_ffn_out});
  p.add(l, Op::add, {post_attn_residual, moe_ffn_out}, {}, {post_ffn_residual});
  return post_ffn_residual;
}

void add_steps(ProgramBuilder& p) {
  p.add(-1, Op::embed, {}, {"token_embd"}, {Stage::embedding});
  Stage x = Stage::embedding;
  for (int l = 0; l < p.config().layers; ++l) x = add_layer(p, l, x);
  p.norm(-1, x, "output_norm", Stage::final_norm, p.config().hidden);
  p.add(-1, Op::linear, {Stage::final_norm}, {"output"}, {Stage::lm_head});
}

// ---- synthetic models ----------------------------------------------------------------------------------------------

// `tiny` keeps what breaks real code: heads wider than hidden, few kv heads, experts no power of two.
constexpr ModelConfig tiny{.layers = 4,
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
constexpr ModelConfig a3b{.layers = 48,
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
constexpr std::array presets{SyntheticPreset{"tiny", "Synthetic tiny Qwen3-MoE", tiny, 512},
                             SyntheticPreset{"qwen3-30b-a3b", "Synthetic Qwen3-30B-A3B", a3b, 6144}};

}  // namespace

const Architecture qwen3moe{
    .name = "qwen3moe",
    .dense = "qwen3",
    .read_config = read_config,
    .add_config = add_config,
    .first_tensors = first_tensors,
    .layer_tensors = layer_tensors,
    .last_tensors = last_tensors,
    .add_steps = add_steps,
    .presets = presets,
};

}  // namespace moe_diag
