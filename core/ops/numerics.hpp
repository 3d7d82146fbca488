// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/api/backend.hpp"
#include "core/api/blocks.hpp"
#include "core/api/stage.hpp"
#include "core/api/step.hpp"
#include "core/api/tensor.hpp"
#include "core/ops/rounding.hpp"
#include "core/ops/weight_rounding.hpp"

// The roundings that an engine makes besides its arithmetic, as data: how its products read activations and weights,
// the type that it stores each stage in, and that of its KV cache. docs/numerics.md lists the rows with their sources.
namespace moe_diag {

// A way in which products read activations: the rounding of those that meet a weight of a type; none: as they are.
struct Reads {
  std::string_view name;
  std::optional<host::Rounding> (*of)(BlockType weight);
  std::string_view text;
  bool keeps_gates_and_head = false;                         // these read activations as they are
  enum class Scale { none, may, must } scale = Scale::none;  // whether one is given with the name

  // What a product does to its activations where they meet a weight of that type.
  std::optional<host::Rounding> rounding(const Step& step, BlockType weight) const;
};
std::span<const Reads> all_reads();
const Reads* find_reads(std::string_view name);  // null: there is none

// A way in which the weights of products are rounded before they are read.
struct WeightType {
  std::string_view name;
  std::optional<host::WeightRounding> rounding;  // none: as the file has them
  bool keeps_gates_and_head;                     // these have their weights as the file has them
  std::string_view text;

  // What it does to the weights of a step: nothing where that is no product.
  std::optional<host::WeightRounding> of(const Step& step) const;
};
std::span<const WeightType> all_weight_types();
const WeightType* find_weight_type(std::string_view name);  // null: there is none

// The sums of products, as far as they decide how large their rounding errors are. Nothing is computed so: it says what
// is expected of an engine.
struct Accumulator {
  std::string_view name;
  enum class Kind { partial_sums, in_order } kind;  // sixteen and a tree, or one term after the other
  int bits;                                         // of the significand
  bool truncates;                                   // instead of rounding to the nearest
  int together;                                     // terms that are added at once
  std::int64_t promoted_after;  // terms, whose sum is then added to one in f32; 0: all terms in one sum
  std::string_view text;
};
std::span<const Accumulator> all_accumulators();
const Accumulator* find_accumulator(std::string_view name);  // null: there is none

// The types of a KV cache.
struct CacheType {
  std::string_view name;
  std::optional<host::Rounding> rounding;  // of the keys and the values of a position; none: kept as they are
  std::string_view text;
};
std::span<const CacheType> all_cache_types();
const CacheType* find_cache_type(std::string_view name);  // null: there is none

// The ways in which keys and values are rotated before a cache rounds them.
struct CacheRotation {
  std::string_view name;
  // The values of a head that are rotated together in a cache that the step reads.
  std::int64_t (*block)(const Step& step);  // null: nothing is rotated
  std::int64_t divides;                     // of a head's size: others cannot be rotated so
  std::string_view text;
};
std::span<const CacheRotation> all_cache_rotations();
const CacheRotation* find_cache_rotation(std::string_view name);  // null: there is none

// What becomes of rows that go into a cache which a step reads; none: they are kept as they are.
struct CacheRounding {
  std::optional<host::Rounding> rounding;
  const CacheRotation* rotation = nullptr;  // null: none

  CacheRounding() = default;
  CacheRounding(std::string_view kv_cache, std::string_view kv_rotate);
  explicit operator bool() const { return rounding.has_value(); }
  host::Values kept(std::span<const double> rows, const Step& step) const;
};

// The types that a known engine stores its stages in: f32 where it stores them as they are computed, or not at all.
struct StoragePreset {
  std::string_view name;
  DType (*of)(const StageInfo& row);
  std::string_view text;
};
std::span<const StoragePreset> all_storage_presets();
const StoragePreset* find_storage_preset(std::string_view name);  // null: there is none

// The numerics that have a name, as rows of the tables above: what a backend's own products do.
struct NamedNumerics {
  std::string_view name, reads, weights, accumulator;
  DType values;  // of stages
};
std::span<const NamedNumerics> all_named_numerics();
const NamedNumerics* find_named_numerics(std::string_view name);  // null: not known here

// The words of a contract about the engine that a lane stands for. Empty: as the lane's backend does it.
struct EngineNumerics {
  std::string reads;                                          // a row of all_reads()
  std::vector<std::pair<Stage, float>> scales;                // that `reads` has: of what products read, each once
  std::string weights;                                        // a row of all_weight_types()
  std::string accumulator;                                    // a row of all_accumulators()
  std::string stored;                                         // a row of all_storage_presets()
  std::vector<std::pair<Stage, DType>> stages;                // each once, instead of a preset
  std::string kv_cache;                                       // a row of all_cache_types()
  std::string kv_rotate;                                      // a row of all_cache_rotations()
  std::vector<std::pair<std::string, std::string>> variants;  // key and name of rows of all_variants()

  bool empty() const {
    return reads.empty() && weights.empty() && accumulator.empty() && stored.empty() && stages.empty() &&
           kv_cache.empty() && variants.empty();
  }
  friend bool operator==(const EngineNumerics&, const EngineNumerics&) = default;
};

// The scale of a stage that products read; 0: none is given.
float scale_of(const EngineNumerics& engine, Stage stage);
// That of all stages; none where they differ, or there is none.
std::optional<float> common_scale(const EngineNumerics& engine);

// The type that each stage is stored in, by index: as the backend has it where nothing coarser is said.
std::vector<DType> storage_of(const EngineNumerics& engine, Stages stages, const Description& backend);

// "reads q8_k, stored as hf, a KV cache in f16"; empty: nothing is said.
std::string text_of(const EngineNumerics& engine);

// True for the types that keep a value in 16 bits.
constexpr bool has_16_bits(DType type) { return type == DType::f16 || type == DType::bf16; }

// The values in a type with fewer bits, as doubles.
host::Values rounded_to(host::Values values, DType type);

}  // namespace moe_diag
