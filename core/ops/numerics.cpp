// SPDX-License-Identifier: MIT
#include "core/ops/numerics.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "core/ops/attention.hpp"
#include "core/ops/operator.hpp"
#include "core/ops/rotation.hpp"

namespace moe_diag {
namespace {

using host::Rounding;

template <Rounding rounding>
std::optional<Rounding> always(BlockType) {
  return rounding;
}

std::optional<Rounding> never(BlockType) { return std::nullopt; }

// As llama.cpp's CPU backend pairs types (ggml/src/ggml-cpu/ggml-cpu.c, type_traits_cpu, vec_dot_type).
std::optional<Rounding> as_llama_cpp(BlockType weight) {
  switch (weight) {
    case BlockType::f32: return std::nullopt;
    case BlockType::f16: return Rounding::f16;
    case BlockType::bf16: return Rounding::bf16;
    default: return info(weight).elements == 256 ? Rounding::q8_k : Rounding::q8_0;
  }
}

// As its CUDA backend does where it multiplies whole numbers (ggml/src/ggml-cuda/quantize.cu).
std::optional<Rounding> in_blocks_of_32(BlockType weight) {
  return info(weight).elements > 1 ? std::optional(Rounding::q8_1) : std::nullopt;
}

constexpr std::array reads_table{
    Reads{"exact", never, "as they are"},
    Reads{"bf16", always<Rounding::bf16>, "rounded to bf16"},
    Reads{"f16", always<Rounding::f16>, "rounded to f16"},
    Reads{"q8_0", always<Rounding::q8_0>, "8 bits in blocks of 32, an f16 scale each"},
    Reads{"q8_0_scalar", always<Rounding::q8_0_scalar>, "the same, as ggml's scalar code rounds"},
    Reads{"q8_1", in_blocks_of_32, "8 bits in blocks of 32, an f32 scale each, where the weight is in blocks"},
    Reads{"q8_k", as_llama_cpp, "as llama.cpp's CPU backend pairs types: Q8_K, Q8_0, f16, bf16 or as they are"},
    Reads{"fp8_token", always<Rounding::fp8_token>, "FP8 E4M3, an f32 scale for each row", true},
    Reads{"fp8_128", always<Rounding::fp8_128>, "FP8 E4M3 in groups of 128, an f32 scale each", true},
    Reads{"fp8_128_pow2", always<Rounding::fp8_128_pow2>, "FP8 E4M3 in groups of 128, a power of two as scale of each",
          true},
    Reads{"fp8_static", always<Rounding::fp8_static>, "FP8 E4M3 with a given scale", true, Reads::Scale::must},
    Reads{"mxfp8", always<Rounding::mxfp8>, "FP8 E4M3 in groups of 32, a power of two as scale of each", true},
    Reads{"mxfp4", always<Rounding::mxfp4>, "FP4 E2M1 in groups of 32, a power of two as scale of each", true},
    Reads{"nvfp4", always<Rounding::nvfp4>, "FP4 E2M1 in groups of 16, an FP8 scale each, times one in f32", true,
          Reads::Scale::may},
};

// The router, the gate of a shared expert and the head stay in 16 bits in checkpoints of FP8, with what they read
// (config.json of Qwen3-30B-A3B-FP8 and others, modules_to_not_convert; DeepSeek-V3 Technical Report, 3.3.1).
bool is_gate_or_head(const Step& step) {
  const bool has_one_value = step.weights.size() == 1 && step.weights[0]->rows == 1;
  return has_one_value || is(step.out[0], Role::router_scores) || is(step.out[0], Role::logits);
}

using host::WeightRounding;
constexpr std::array weight_table{
    WeightType{"as_stored", std::nullopt, false, "as the file has them"},
    WeightType{"bf16", WeightRounding::bf16, false, "rounded to bf16"},
    WeightType{"fp8_block", WeightRounding::fp8_block, true, "FP8 E4M3 in blocks of 128 x 128, an f32 scale each"},
    WeightType{"fp8_block_pow2", WeightRounding::fp8_block_pow2, true,
               "FP8 E4M3 in blocks of 128 x 128, a power of two as scale of each"},
};

// What is known of Hopper's tensor cores with FP8: DeepSeek-V3 Technical Report (arXiv 2412.19437), 3.3.2 and 3.5.2.
using Sum = Accumulator::Kind;
constexpr std::array accumulator_table{
    Accumulator{"f32", Sum::partial_sums, 24, false, 1, 0, "f32"},
    Accumulator{"bf16", Sum::in_order, 8, false, 1, 0, "bf16, term by term"},
    Accumulator{"f16", Sum::in_order, 11, false, 1, 0, "f16, term by term"},
    Accumulator{"fp8_tensor_core", Sum::in_order, 14, true, 32, 128, "14 bits, added to a sum in f32 after 128 terms"},
    Accumulator{"fp8_tensor_core_fast", Sum::in_order, 14, true, 32, 0, "14 bits"},
};

constexpr std::array cache_table{
    CacheType{"f32", std::nullopt, "as they are"},
    CacheType{"bf16", Rounding::bf16, "rounded to bf16"},
    CacheType{"f16", Rounding::f16, "rounded to f16: the default of llama.cpp"},
    CacheType{"q8_0", Rounding::q8_0, "8 bits in blocks of 32, an f16 scale each"},
    CacheType{"q8_0_scalar", Rounding::q8_0_scalar, "the same, as ggml's scalar code rounds"},
    CacheType{"q4_0", Rounding::q4_0, "4 bits in blocks of 32, an f16 scale each"},
    CacheType{"fp8_e4m3", Rounding::fp8, "FP8 E4M3 with a scale of 1, as vLLM has it without calibration"},
};

// As llama.cpp has it (src/llama-kv-cache.cpp, build_input_k_rot and build_input_v_rot, since pull request 21038): keys
// in the largest blocks of 64 times a power of two that a head is whole ones of, values in blocks of 64.
constexpr std::int64_t least_rotated = 64;
std::int64_t hadamard_block(const Step& step) {
  if (step.op != Op::scores) return least_rotated;
  std::int64_t block = least_rotated;
  while (head_sizes(step).head_dim % (2 * block) == 0) block *= 2;
  return block;
}

constexpr std::array rotation_table{
    CacheRotation{"none", nullptr, 1, "as they are"},
    CacheRotation{"hadamard", hadamard_block, least_rotated, "by a Hadamard matrix"},
};

template <DType type>
DType all_in(const StageInfo&) {
  return type;
}

// transformers, a model in bf16 with eager attention: models/qwen3_moe/modeling_qwen3_moe.py. The softmax of the router
// is f32; its weights, and attention's, are cast back.
DType as_hf(const StageInfo& row) { return row.role == Role::router_probs ? DType::f32 : DType::bf16; }

// vLLM, a model in bf16: model_executor/layers/fused_moe/fused_moe.py. Scores stay in the kernel of attention, the
// router's softmax and weights are f32, and the output of down is weighed before it is stored.
DType as_vllm(const StageInfo& row) {
  const bool is_down = row.role == Role::expert_values && row.row[1].symbol == "d";
  const bool stays =
      row.role == Role::key_values || row.role == Role::router_probs || row.role == Role::choice_weights || is_down;
  return stays ? DType::f32 : DType::bf16;
}

constexpr std::array storage_table{
    StoragePreset{"f32", all_in<DType::f32>, "every stage in f32"},
    StoragePreset{"bf16", all_in<DType::bf16>, "every stage in bf16"},
    StoragePreset{"f16", all_in<DType::f16>, "every stage in f16"},
    StoragePreset{"hf", as_hf, "a bf16 model in transformers, with eager attention"},
    StoragePreset{"vllm", as_vllm, "a bf16 model in vLLM"},
    StoragePreset{"llama_cpp", all_in<DType::f32>, "llama.cpp on a CPU: every stage in f32"},
};

// Sums of f64 lanes are in f64, which no engine has.
constexpr std::array named_table{
    NamedNumerics{"f64", "exact", "as_stored", "", DType::f64},
    NamedNumerics{"f32", "exact", "as_stored", "f32", DType::f32},
    NamedNumerics{"bf16", "bf16", "bf16", "f32", DType::f32},
    NamedNumerics{"q8_k", "q8_k", "as_stored", "f32", DType::f32},
    NamedNumerics{"q8_1", "q8_1", "as_stored", "f32", DType::f32},
};

template <class Table>
auto find_in(const Table& table, std::string_view name) -> decltype(table.data()) {
  const auto found = std::find_if(table.begin(), table.end(), [&](const auto& row) { return row.name == name; });
  return found == table.end() ? nullptr : &*found;
}

}  // namespace

std::span<const Reads> all_reads() { return reads_table; }
const Reads* find_reads(std::string_view name) { return find_in(reads_table, name); }
std::optional<host::Rounding> Reads::rounding(const Step& step, BlockType weight) const {
  return keeps_gates_and_head && is_gate_or_head(step) ? std::nullopt : of(weight);
}
std::span<const WeightType> all_weight_types() { return weight_table; }
const WeightType* find_weight_type(std::string_view name) { return find_in(weight_table, name); }
std::span<const Accumulator> all_accumulators() { return accumulator_table; }
const Accumulator* find_accumulator(std::string_view name) { return find_in(accumulator_table, name); }
std::optional<host::WeightRounding> WeightType::of(const Step& step) const {
  const bool keeps = !is_product(operator_of(step)) || (keeps_gates_and_head && is_gate_or_head(step));
  return keeps ? std::nullopt : rounding;
}
std::span<const CacheType> all_cache_types() { return cache_table; }
const CacheType* find_cache_type(std::string_view name) { return find_in(cache_table, name); }
std::span<const CacheRotation> all_cache_rotations() { return rotation_table; }
const CacheRotation* find_cache_rotation(std::string_view name) { return find_in(rotation_table, name); }

CacheRounding::CacheRounding(std::string_view kv_cache, std::string_view kv_rotate)
    : rotation(find_cache_rotation(kv_rotate)) {
  if (rotation && !rotation->block) rotation = nullptr;
  if (const CacheType* type = find_cache_type(kv_cache)) rounding = type->rounding;
}

host::Values CacheRounding::kept(std::span<const double> rows, const Step& step) const {
  return host::rounded_when_rotated(rows, *rounding, rotation ? rotation->block(step) : 0);
}

std::span<const StoragePreset> all_storage_presets() { return storage_table; }
const StoragePreset* find_storage_preset(std::string_view name) { return find_in(storage_table, name); }

float scale_of(const EngineNumerics& engine, Stage stage) {
  const auto found =
      std::find_if(engine.scales.begin(), engine.scales.end(), [&](const auto& one) { return one.first == stage; });
  return found == engine.scales.end() ? 0 : found->second;
}

std::optional<float> common_scale(const EngineNumerics& engine) {
  const auto& all = engine.scales;
  const bool differ = std::any_of(all.begin(), all.end(), [&](const auto& one) { return one.second != all[0].second; });
  const bool is_whole =
      !all.empty() && std::all_of(all[0].first.siblings().begin(), all[0].first.siblings().end(), [&](Stage s) {
        return payload_of(s) == Payload::indices || scale_of(engine, s) > 0;
      });
  return is_whole && !differ ? std::optional(all[0].second) : std::nullopt;
}

std::span<const NamedNumerics> all_named_numerics() { return named_table; }
const NamedNumerics* find_named_numerics(std::string_view name) { return find_in(named_table, name); }

std::vector<DType> storage_of(const EngineNumerics& engine, Stages stages, const Description& backend) {
  std::vector<DType> types;
  const StoragePreset* preset = find_storage_preset(engine.stored);
  for (const Stage stage : stages) {
    DType type = preset && payload_of(stage) == Payload::values ? preset->of(info(stage)) : DType::f32;
    for (const auto& [one, stored] : engine.stages)
      if (one == stage) type = stored;
    types.push_back(type == DType::f32 ? backend.stored(stage) : type);
  }
  return types;
}

std::string text_of(const EngineNumerics& engine) {
  std::string text;
  const auto add = [&](std::string_view more) { text.append(text.empty() ? "" : ", ").append(more); };
  if (!engine.reads.empty()) add("reads " + engine.reads);
  if (const auto scale = common_scale(engine))
    text += fmt::format(" with a scale of {}", *scale);
  else if (!engine.scales.empty())
    text += " with scales by stage";
  if (!engine.weights.empty()) add("weights " + engine.weights);
  if (!engine.accumulator.empty()) add("sums in " + engine.accumulator);
  if (!engine.stored.empty()) add("stored as " + engine.stored);
  if (!engine.stages.empty()) add("stored by stage");
  if (!engine.kv_cache.empty()) add("a KV cache in " + engine.kv_cache);
  if (!engine.kv_rotate.empty()) add("rotated by " + engine.kv_rotate);
  for (const auto& [key, name] : engine.variants) add(fmt::format("{} {}", key, name));
  return text;
}

host::Values rounded_to(host::Values values, DType type) {
  for (double& v : values) switch (type) {
      case DType::f32: v = static_cast<double>(static_cast<float>(v)); break;
      case DType::f16: v = static_cast<double>(float{F16(v)}); break;
      case DType::bf16: v = static_cast<double>(float{BF16(v)}); break;
      default: break;
    }
  return values;
}

}  // namespace moe_diag
