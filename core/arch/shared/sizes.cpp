// SPDX-License-Identifier: MIT
#include "core/arch/shared/sizes.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <string>
#include <vector>

#include "core/arch/architecture.hpp"

namespace moe_diag::sizes {
namespace {

constexpr std::int64_t largest_width = 1 << 30;  // of a row

// Keys that are read into the configuration, or say nothing about what is computed.
constexpr std::string_view known_keys[] = {
    "block_count",
    "context_length",
    "embedding_length",
    "vocab_size",
    "feed_forward_length",
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

constexpr MetadataSwitch not_computed[] = {
    {"expert_weights_scale", 1, 0, "a scale of the experts' weights"},
    {"expert_gating_func", 1, 0, "a gating function other than softmax"},
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

int head_dim_by_default(const GgufFile& file, const MetadataReader& metadata, const ModelConfig& c) {
  if (c.hidden % c.heads != 0)
    refuse_file(file, "metadata key '{}' is missing, and {} values are no whole number of {} heads",
                metadata.full("attention.key_length"), c.hidden, c.heads);
  return c.hidden / c.heads;
}

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

}  // namespace

void refuse_others(const MetadataReader& metadata, std::span<const std::string_view> known,
                   std::span<const MetadataSwitch> switches) {
  std::vector<std::string_view> keys(std::begin(known_keys), std::end(known_keys));
  keys.insert(keys.end(), known.begin(), known.end());
  std::vector<MetadataSwitch> all(std::begin(not_computed), std::end(not_computed));
  all.insert(all.end(), switches.begin(), switches.end());
  metadata.refuse_others(keys, all);
}

ModelConfig read(const GgufFile& file, const MetadataReader& metadata, HeadDim head_dim) {
  ModelConfig c;
  c.layers = metadata.size("block_count");
  c.hidden = metadata.size("embedding_length");
  c.heads = metadata.size("attention.head_count");
  c.kv_heads = metadata.size("attention.head_count_kv");
  const bool is_stated = head_dim == HeadDim::stated || file.find(metadata.full("attention.key_length"));
  c.head_dim = is_stated ? metadata.size("attention.key_length") : head_dim_by_default(file, metadata, c);
  c.experts = metadata.size("expert_count");
  c.used = metadata.size("expert_used_count");
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

void read_expert_widths(const GgufFile& file, const MetadataReader& metadata, std::optional<int> when_absent,
                        ModelConfig& c) {
  const std::string key = metadata.full("expert_feed_forward_length");
  const GgufEntry* entry = file.find(key);
  if (!entry && when_absent) {
    if (*when_absent < 1)
      refuse_file(file, "metadata key '{}' is missing, and what stands for it, '{}' by '{}', is {}", key,
                  metadata.full("feed_forward_length"), metadata.full("expert_used_count"), *when_absent);
    c.expert_width = *when_absent;
  }
  if (entry && entry->type == GgufType::array) {
    if (entry->count > 0 && file.integers(key).empty())
      refuse_file(file, "metadata key '{}' is an array of {}, expected integers", key, name_of(entry->element));
    const std::vector<std::int64_t> widths = file.integers(key);
    if (widths.size() != static_cast<std::size_t>(c.layers))
      refuse_file(file, "metadata key '{}' has {} integers, expected one for each of {} layers", key, widths.size(),
                  c.layers);
    for (const std::int64_t width : widths) {
      if (width < 1 || width > MetadataReader::largest_size)
        refuse_file(file, "metadata key '{}' has the value {}, expected 1 to {}", key, width,
                    MetadataReader::largest_size);
      c.expert_widths.push_back(static_cast<int>(width));
      c.expert_width = std::max(c.expert_width, c.expert_widths.back());
    }
  } else if (entry || !when_absent) {
    c.expert_width = metadata.size("expert_feed_forward_length");
  }
}

void add_expert_widths(GgufHeader& header, std::string_view architecture, const ModelConfig& config) {
  const std::string key = fmt::format("{}.expert_feed_forward_length", architecture);
  if (config.expert_widths.empty())
    header.add(key, static_cast<std::uint32_t>(config.expert_width));
  else
    header.add(key, config.expert_widths);
}

void add(GgufHeader& header, std::string_view architecture, const ModelConfig& config, int dense_width) {
  const auto add = [&](std::string_view key, int value) {
    header.add(fmt::format("{}.{}", architecture, key), static_cast<std::uint32_t>(value));
  };
  add("block_count", config.layers);
  add("context_length", config.context);
  add("embedding_length", config.hidden);
  add("feed_forward_length", dense_width);
  add("attention.head_count", config.heads);
  add("attention.head_count_kv", config.kv_heads);
  add("attention.key_length", config.head_dim);
  add("attention.value_length", config.head_dim);
  header.add(fmt::format("{}.attention.layer_norm_rms_epsilon", architecture), config.rms_eps);
  header.add(fmt::format("{}.rope.freq_base", architecture), config.rope_theta);
  add("expert_count", config.experts);
  add("expert_used_count", config.used);
}

}  // namespace moe_diag::sizes
