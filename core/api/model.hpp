// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "core/api/blocks.hpp"
#include "core/api/cache.hpp"
#include "core/api/stage.hpp"
#include "core/api/tensor.hpp"

namespace moe_diag {

// The sizes and constants of one model.
struct ModelConfig {
  int layers = 0;
  int hidden = 0;        // d
  int heads = 0;         // Hq; of most layers, as the next two: each step has its own
  int kv_heads = 0;      // Hk, divides Hq
  int head_dim = 0;      // h, even; not hidden / heads
  int experts = 0;       // E
  int used = 0;          // k, at most E
  int expert_width = 0;  // f; the widest, where layers differ
  int vocab = 0;         // V
  int context = 0;       // longest sequence the model was made for
  float rms_eps = 0;
  float rope_theta = 0;
  bool tied_output = false;             // no output.weight: the head uses token_embd.weight
  std::vector<int> expert_widths = {};  // of each layer, where they differ
  std::vector<double> own = {};         // numbers that the architecture alone knows, of the model or of each layer
  Stages stages = {};                   // of its architecture
  Caches caches = {};                   // of its architecture

  int q_width() const { return heads * head_dim; }
  int kv_width() const { return kv_heads * head_dim; }
  int qkv_width() const { return q_width() + 2 * kv_width(); }

  int expert_width_of(int layer) const {
    return expert_widths.empty() ? expert_width : expert_widths[static_cast<std::size_t>(layer)];
  }

  // Shape of `rows` positions of a stage: [rows, ...]. `sequence`: length of the whole one.
  Shape shape_of(Site site, std::int64_t rows, int sequence) const {
    Shape shape{rows};
    for (const Dim& dim : info(site.stage).row)
      if (!dim.symbol.empty())
        shape.dims[static_cast<std::size_t>(shape.rank++)] = dim.size ? dim.size(*this, site.layer) : sequence;
    return shape;
  }

  // Values that a cache has of one position of a layer, or of its state. 0: the layer has no such cache.
  std::int64_t cache_width(Cache cache, int layer) const {
    std::int64_t width = 1;
    for (const Dim& dim : info(cache).row)
      if (!dim.symbol.empty()) width *= dim.size(*this, layer);
    return width;
  }
};

// The layer in which each stage has its longest rows; -1 for stages of no layer. A buffer that holds one layer at a
// time needs the room of that one.
inline std::vector<int> widest_layers(const ModelConfig& config) {
  std::vector<int> widest;
  for (const Stage stage : config.stages) {
    int layer = info(stage).scope == Scope::layer ? 0 : -1;
    const auto row = [&](int l) { return config.shape_of({stage, l}, 1, 1).count(); };
    for (int l = 1; layer >= 0 && l < config.layers; ++l)
      if (row(l) > row(layer)) layer = l;
    widest.push_back(layer);
  }
  return widest;
}

// One tensor of the model file, still in its block format: [experts, rows, cols], cols fastest, each row whole blocks.
// `data` points into the mapped file and has no alignment guarantee.
struct Weight {
  std::string_view name;
  BlockType type = BlockType::f32;
  std::int64_t cols = 0, rows = 1, experts = 1;
  const std::byte* data = nullptr;

  std::size_t row_bytes() const {
    return static_cast<std::size_t>(cols / info(type).elements) * static_cast<std::size_t>(info(type).bytes);
  }
  std::size_t expert_bytes() const { return row_bytes() * static_cast<std::size_t>(rows); }
  std::size_t bytes() const { return expert_bytes() * static_cast<std::size_t>(experts); }
  const std::byte* row(std::int64_t expert, std::int64_t r) const {
    return data + static_cast<std::size_t>(expert) * expert_bytes() + static_cast<std::size_t>(r) * row_bytes();
  }
};

// What a backend sees of a model. Valid for the whole run.
struct ModelView {
  const ModelConfig* config = nullptr;
  std::span<const Weight> weights;
};

}  // namespace moe_diag
