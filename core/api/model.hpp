// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "core/api/blocks.hpp"
#include "core/api/stage.hpp"
#include "core/api/tensor.hpp"

namespace moe_diag {

// The sizes and constants of one Qwen3-MoE model.
struct ModelConfig {
  int layers = 0;
  int hidden = 0;        // d
  int heads = 0;         // Hq
  int kv_heads = 0;      // Hk, divides Hq
  int head_dim = 0;      // h, even; not hidden / heads
  int experts = 0;       // E
  int used = 0;          // k, at most E
  int expert_width = 0;  // f
  int vocab = 0;         // V
  int context = 0;       // longest sequence the model was made for
  float rms_eps = 0;
  float rope_theta = 0;
  bool tied_output = false;  // no output.weight: the head uses token_embd.weight

  int q_width() const { return heads * head_dim; }
  int kv_width() const { return kv_heads * head_dim; }
  int qkv_width() const { return q_width() + 2 * kv_width(); }

  // Size of a stage's dimension; `sequence` is the whole sequence's length.
  std::int64_t size(Dim dim, int sequence) const {
    switch (dim) {
      case Dim::none: return 1;
      case Dim::hidden: return hidden;
      case Dim::qkv_width: return qkv_width();
      case Dim::heads: return heads;
      case Dim::kv_heads: return kv_heads;
      case Dim::head_dim: return head_dim;
      case Dim::heads_width: return q_width();
      case Dim::sequence: return sequence;
      case Dim::experts: return experts;
      case Dim::used: return used;
      case Dim::expert_width: return expert_width;
      case Dim::vocab: return vocab;
    }
    return 0;
  }

  // Shape of `rows` positions of a stage: [rows, ...].
  Shape shape_of(Stage stage, std::int64_t rows, int sequence) const {
    const StageInfo& s = info(stage);
    if (s.row[1] == Dim::none) return {rows, size(s.row[0], sequence)};
    return {rows, size(s.row[0], sequence), size(s.row[1], sequence)};
  }
};

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
