// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/api/model.hpp"
#include "core/gguf/gguf_file.hpp"
#include "core/gguf/gguf_header.hpp"
#include "core/ops/program.hpp"

namespace moe_diag {

// The part that a tensor plays in a model. It decides which values a synthetic model gives it, and which type files
// keep it in.
enum class TensorKind : std::uint8_t {
  table,   // a row for each token of the vocabulary
  norm,    // a vector that scales a normalised row; F32 in every file
  matrix,  // of a product
  router,  // whose product chooses experts; F32 in every file
  gate,    // a vector whose product with a row is one value; F32 in every file
  bias,    // a vector that is added to a product; F32 in every file
  head,    // whose product is the logits
};

// One tensor that a model of a configuration has.
struct TensorSpec {
  std::string_view role;  // GGUF's name, without "blk.<layer>." and ".weight"; with ".bias" or another suffix
  int layer = -1;         // -1: of no layer
  TensorKind kind = TensorKind::matrix;
  std::int64_t cols = 0, rows = 1, experts = 1;
  int rank = 2;  // 1 for vectors, 3 for experts, else 2
  bool is_optional = false;
  bool is_bare = false;  // its name has no suffix, not even ".weight"

  // Used by synthetic models only.
  float gain = 1;          // standard deviation of a matmul's output for inputs of size one; of a norm, size of weights
  bool more_bits = false;  // mixes of types keep some layers of it in a finer type
  bool massive = false;    // a few of its rows carry massive activations

  std::string name() const;                // "blk.2.attn_q.weight"
  std::vector<std::int64_t> dims() const;  // fastest first: cols, rows, experts
};

// A synthetic model of an architecture.
struct SyntheticPreset {
  std::string_view name, title;
  ModelConfig config;
  int dense_width;  // feed_forward_length, which loaders want though no layer is dense
};

// An architecture turns a model file into a program. Each one is a file of its name in core/arch, and no other file
// knows it.
struct Architecture {
  std::string_view name;   // general.architecture
  std::string_view dense;  // the architecture of the same family that has no experts, for a message; may be empty

  Stages stages;  // a table of its own, in the order in which a forward pass writes them
  Caches caches;  // a table of its own

  // The configuration in a file's metadata; sizes that only tensors show (vocabulary, tied output) come from the tensor
  // table. Throws Error (environment) for a missing or impossible value, and every key that would change the
  // mathematics in a way that is not computed here. Of a file that holds a part of a model (core/model/part.hpp) the
  // vocabulary may be in the metadata.
  ModelConfig (*read_config)(const GgufFile& file);
  // The metadata that read_config() reads, the vocabulary included.
  void (*add_config)(GgufHeader& header, const ModelConfig& config, int dense_width);

  // All tensors, in forward order: those before the layers, of one layer, and after them.
  std::vector<TensorSpec> (*first_tensors)(const ModelConfig& config);
  std::vector<TensorSpec> (*layer_tensors)(const ModelConfig& config, int layer);
  std::vector<TensorSpec> (*last_tensors)(const ModelConfig& config);

  // The forward pass.
  void (*add_steps)(ProgramBuilder& program);

  std::span<const SyntheticPreset> presets;

  std::span<const std::string_view> own = {};  // names of the first numbers in ModelConfig::own
};

// All architectures, by name.
std::span<const Architecture* const> architectures();

// The stages of all architectures, each name once: for contracts whose model is not there.
Stages all_stages();

// The architecture of a file. Throws Error (environment) for a file of another one.
const Architecture& architecture_of(const GgufFile& file);

// A file with the tensors of one step says of which stage.
inline constexpr std::string_view part_stage_key = "moe_diag.part.stage";
inline bool is_part(const GgufFile& file) { return file.find(part_stage_key) != nullptr; }

}  // namespace moe_diag
