// SPDX-License-Identifier: MIT
#include "core/model/config.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <string>
#include <string_view>
#include <utility>

#include "core/api/error.hpp"
#include "core/model/part.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

constexpr std::string_view arch = "qwen3moe";
constexpr std::string_view prefix = "qwen3moe.";
constexpr std::int64_t largest_size = 1 << 24;   // of any one size; products of two are checked where they are formed
constexpr std::int64_t largest_width = 1 << 30;  // of a row

template <class... Args>
[[noreturn]] void refuse(const GgufFile& file, fmt::format_string<Args...> message, Args&&... args) {
  throw Error(ErrorKind::environment,
              fmt::format("{}: {}", file.source(), fmt::format(message, std::forward<Args>(args)...)));
}

std::string full(std::string_view key) { return fmt::format("{}{}", prefix, key); }

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

// Keys that change the mathematics unless they have a value that says "not used". Numbers and booleans (0, 1) alike.
struct Switch {
  std::string_view key;
  double off, also_off;
  std::string_view what;
};
constexpr Switch switches[] = {
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

int size_of(const GgufFile& file, std::string_view key) {
  const auto value = file.integer(full(key));
  if (!value) refuse(file, "metadata key '{}' is missing", full(key));
  if (*value < 1 || *value > largest_size)
    refuse(file, "metadata key '{}' is {}, expected 1 to {}", full(key), *value, largest_size);
  return static_cast<int>(*value);
}

float positive(const GgufFile& file, std::string_view key) {
  const auto value = file.real(full(key));
  if (!value) refuse(file, "metadata key '{}' is missing", full(key));
  if (!std::isfinite(*value) || *value <= 0 || !std::isfinite(static_cast<float>(*value)))
    refuse(file, "metadata key '{}' is {}, expected a positive number", full(key), *value);
  return static_cast<float>(*value);
}

// The model's file of several parts as llama-gguf-split names them: "-00002-of-00003.gguf". 0: of none.
struct SplitName {
  int part = 0, parts = 0;
};
SplitName split_name(std::string_view path) {
  SplitName name;
  const std::size_t at = path.rfind("-of-");
  if (at == std::string_view::npos || at < 6 || path.substr(at).size() < 9 || path[at - 6] != '-') return {};
  for (const auto& [text, number] :
       {std::pair{path.substr(at - 5, 5), &name.part}, std::pair{path.substr(at + 4, 5), &name.parts}}) {
    const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), *number);
    if (error != std::errc() || stop != text.data() + text.size()) return {};
  }
  return name;
}

// Parts but the first have no architecture of their own, and the first lacks the tensors of the others.
void refuse_split(const GgufFile& file) {
  const SplitName name = split_name(file.source());
  std::int64_t part = file.integer("split.no").value_or(name.part - 1) + 1;
  const std::int64_t parts = file.integer("split.count").value_or(file.find("general.architecture") ? 0 : name.parts);
  if (parts <= 1) return;
  if (part < 1 || part > parts) part = 0;  // neither says which
  refuse(file,
         "{} of a split model: split files are not supported yet; join them: llama-gguf-split --merge FIRST-PART.gguf "
         "MODEL.gguf",
         part > 0 ? fmt::format("part {} of {}", part, parts) : fmt::format("one of {} parts", parts));
}

void require_arch(const GgufFile& file) {
  refuse_split(file);
  const auto found = file.text("general.architecture");
  if (!found) refuse(file, "metadata key 'general.architecture' is missing, expected '{}'", arch);
  if (*found == "qwen3")
    refuse(file, "the architecture is 'qwen3', a dense model without experts; supported: '{}'", arch);
  if (*found != arch) refuse(file, "the architecture is {}; supported: '{}'", quoted(*found), arch);
}

void refuse_switch(const GgufFile& file, const Switch& s) {
  const std::string key = full(s.key);
  const GgufEntry* entry = file.find(key);
  if (entry->type == GgufType::array || entry->type == GgufType::text)
    refuse(file, "metadata key '{}' is of type {}: {}: changes what is computed and is not supported", key,
           name_of(entry->type), s.what);
  const double value = entry->type == GgufType::boolean ? (*file.boolean(key) ? 1.0 : 0.0) : *file.real(key);
  if (value != s.off && value != s.also_off)
    refuse(file, "metadata key '{}' is {}, expected {}: {}: changes what is computed and is not supported", key, value,
           s.off, s.what);
}

// Every key of the architecture is either read, harmless, or off; one that nobody here knows may change anything.
void refuse_unsupported_keys(const GgufFile& file) {
  for (const GgufEntry& entry : file.metadata()) {
    if (!entry.key.starts_with(prefix)) continue;
    const std::string_view key = entry.key.substr(prefix.size());
    if (std::find(std::begin(known_keys), std::end(known_keys), key) != std::end(known_keys)) continue;
    if (key == "rope.scaling.type") {
      const std::string_view type = *file.text(entry.key);
      if (type == "none") continue;
      refuse(file,
             "metadata key '{}' is {}, expected 'none': RoPE scaling changes what is computed and is not supported",
             entry.key, quoted(type));
    }
    const auto* found = std::find_if(std::begin(switches), std::end(switches), [&](auto& s) { return s.key == key; });
    if (found == std::end(switches))
      refuse(file,
             "metadata key {} is not known and may change what is computed; if it does not, remove it from the "
             "file",
             quoted(entry.key));
    refuse_switch(file, *found);
  }
}

void check_heads(const GgufFile& file, const ModelConfig& c) {
  if (c.heads % c.kv_heads != 0)
    refuse(file, "metadata key '{}' is {}, expected a divisor of the {} heads", full("attention.head_count_kv"),
           c.kv_heads, c.heads);
  if (c.head_dim % 2 != 0)
    refuse(file, "metadata key '{}' is {}, expected an even number: RoPE turns pairs", full("attention.key_length"),
           c.head_dim);
  for (const std::string_view key : {"attention.value_length", "rope.dimension_count"}) {
    const auto value = file.integer(full(key));
    if (value && *value != c.head_dim)
      refuse(file, "metadata key '{}' is {}, expected {}, the value of '{}': other sizes are not supported", full(key),
             *value, c.head_dim, full("attention.key_length"));
  }
  const std::int64_t width = (std::int64_t{c.heads} + 2 * std::int64_t{c.kv_heads}) * c.head_dim;
  if (width > largest_width)
    refuse(file, "{} heads and {} kv heads of {} make rows of {} values, expected {} at most", c.heads, c.kv_heads,
           c.head_dim, width, largest_width);
}

// The vocabulary is as large as the embedding's table, which a part may lack.
int read_vocab(const GgufFile& file) {
  const GgufTensor* table = file.find_tensor("token_embd.weight");
  if (table == nullptr && is_part(file)) return size_of(file, "vocab_size");
  if (table == nullptr) refuse(file, "tensor token_embd.weight is missing");
  if (table->dims[1] > largest_size)
    refuse(file, "tensor token_embd.weight has {} rows, expected {} at most", table->dims[1], largest_size);
  const auto stated = file.integer(full("vocab_size"));
  if (stated && *stated != table->dims[1])
    refuse(file, "metadata key '{}' is {}, but tensor token_embd.weight has {} rows", full("vocab_size"), *stated,
           table->dims[1]);
  return static_cast<int>(table->dims[1]);
}

}  // namespace

ModelConfig read_config(const GgufFile& file) {
  require_arch(file);
  refuse_unsupported_keys(file);
  ModelConfig c;
  c.layers = size_of(file, "block_count");
  c.hidden = size_of(file, "embedding_length");
  c.heads = size_of(file, "attention.head_count");
  c.kv_heads = size_of(file, "attention.head_count_kv");
  c.head_dim = size_of(file, "attention.key_length");
  c.experts = size_of(file, "expert_count");
  c.used = size_of(file, "expert_used_count");
  c.expert_width = size_of(file, "expert_feed_forward_length");
  c.context = size_of(file, "context_length");
  c.rms_eps = positive(file, "attention.layer_norm_rms_epsilon");
  c.rope_theta = positive(file, "rope.freq_base");
  c.vocab = read_vocab(file);
  c.tied_output = file.find_tensor("output.weight") == nullptr;
  check_heads(file, c);
  if (c.used > c.experts)
    refuse(file, "metadata key '{}' is {}, expected at most the {} experts of '{}'", full("expert_used_count"), c.used,
           c.experts, full("expert_count"));
  return c;
}

void add_config(GgufHeader& header, const ModelConfig& config, int dense_width) {
  const auto add = [&](std::string_view key, int value) { header.add(full(key), static_cast<std::uint32_t>(value)); };
  add("block_count", config.layers);
  add("context_length", config.context);
  add("embedding_length", config.hidden);
  add("feed_forward_length", dense_width);
  add("attention.head_count", config.heads);
  add("attention.head_count_kv", config.kv_heads);
  add("attention.key_length", config.head_dim);
  add("attention.value_length", config.head_dim);
  header.add(full("attention.layer_norm_rms_epsilon"), config.rms_eps);
  header.add(full("rope.freq_base"), config.rope_theta);
  add("expert_count", config.experts);
  add("expert_used_count", config.used);
  add("expert_feed_forward_length", config.expert_width);
  add("vocab_size", config.vocab);
}

}  // namespace moe_diag
