// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <span>
#include <string_view>

#include "core/api/op.hpp"

namespace moe_diag {

// A stage stands before the layers, in each of them, or behind them.
enum class Scope : std::uint8_t { before_layers, layer, after_layers };
enum class Payload : std::uint8_t { values, indices };

// The part that a stage plays in its model. An architecture has several stages of the roles value, key_values and
// expert_values, and at most one of every other role.
enum class Role : std::uint8_t {
  value,           // none of those below
  key_values,      // [T, heads, S]: a value for each key up to the row's own position
  router_scores,   // [T, E]: what the experts are chosen by, the largest of them; logits, where a softmax comes between
  router_probs,    // [T, E]: that softmax
  choice,          // [T, k]: ids of the experts chosen
  choice_weights,  // [T, k]
  expert_values,   // [T, k, n]: a slot for each expert chosen
  weighed_values,  // [T, k, n]: the same times the weights of the choice
  layer_output,    // what the next layer reads
  logits,          // [T, V]: of the next token
};

struct ModelConfig;

// A size that the rows of a stage are made of. Positions, the first dimension, are always there.
struct Dim {
  std::string_view symbol{};                                      // "d"; empty: no dimension
  std::int64_t (*size)(const ModelConfig&, int layer) = nullptr;  // null: the length of the sequence
};

// All that is known of one named tensor of an architecture's forward pass.
struct StageInfo {
  std::string_view name;
  Scope scope = Scope::layer;
  Op op = Op::embed;  // the operator that writes it
  Role role = Role::value;
  std::array<Dim, 2> row{};                   // after the position
  std::array<std::string_view, 3> weights{};  // GGUF names within the layer, ".weight" left out
  std::string_view llama_cpp{};               // what llama.cpp's graph calls it; empty: not there
  std::string_view hf{};                      // where HF transformers shows it; empty: fused away
  std::string_view alias{};                   // empty: none
  Dim head{};                                 // values of a head, where a row is heads side by side
  bool sums_to_one = false;                   // the values of a row do

  // Place in the table of its architecture, which has `count` rows in forward order.
  std::uint16_t index = 0, count = 1;
};

// Numbers the rows of an architecture's table.
constexpr void number(std::span<StageInfo> rows) {
  for (std::size_t i = 0; i < rows.size(); ++i) {
    rows[i].index = static_cast<std::uint16_t>(i);
    rows[i].count = static_cast<std::uint16_t>(rows.size());
  }
}
template <std::size_t N>
constexpr std::array<StageInfo, N> numbered(std::array<StageInfo, N> rows) {
  number(rows);
  return rows;
}

inline constexpr StageInfo no_stage{};
class Stages;

// A named tensor of the forward pass: a row of the table of its architecture, which lives as long as the process.
class Stage {
 public:
  constexpr Stage() = default;  // no stage
  constexpr explicit Stage(const StageInfo& row) : row_(&row) {}

  constexpr const StageInfo& row() const { return *row_; }
  // 0 to the number of stages of the architecture, in forward order.
  constexpr std::size_t index() const { return row_->index; }
  constexpr explicit operator bool() const { return !row_->name.empty(); }

  // The stages of its architecture, and that of a role among them.
  constexpr Stages siblings() const;
  constexpr Stage sibling(Role role) const;

  friend constexpr bool operator==(Stage, Stage) = default;

 private:
  const StageInfo* row_ = &no_stage;
};

constexpr const StageInfo& info(Stage stage) { return stage.row(); }
constexpr bool is_of_heads(Stage stage) { return !stage.row().head.symbol.empty(); }
constexpr std::string_view name_of(Stage stage) { return stage.row().name; }

// The stages of an architecture, in forward order.
class Stages {
 public:
  class Iterator {
   public:
    using value_type = Stage;
    using difference_type = std::ptrdiff_t;
    using reference = Stage;
    using pointer = const Stage*;
    using iterator_category = std::input_iterator_tag;

    constexpr Iterator() = default;
    constexpr explicit Iterator(const StageInfo* row) : row_(row) {}
    constexpr Stage operator*() const { return Stage(*row_); }
    constexpr Iterator& operator++() {
      ++row_;
      return *this;
    }
    constexpr Iterator operator++(int) { return Iterator(row_++); }
    friend constexpr bool operator==(Iterator, Iterator) = default;

   private:
    const StageInfo* row_ = nullptr;
  };

  constexpr Stages() = default;
  constexpr explicit Stages(std::span<const StageInfo> rows) : rows_(rows) {}

  constexpr Iterator begin() const { return Iterator(rows_.data()); }
  constexpr Iterator end() const { return Iterator(rows_.data() + rows_.size()); }
  constexpr std::size_t size() const { return rows_.size(); }
  constexpr Stage operator[](std::size_t index) const { return Stage(rows_[index]); }

  // The stage of that name; no stage when there is none.
  constexpr Stage find(std::string_view name) const {
    for (const StageInfo& row : rows_)
      if (row.name == name) return Stage(row);
    return {};
  }
  // The first of a role; no stage when there is none.
  constexpr Stage of(Role role) const {
    for (const StageInfo& row : rows_)
      if (row.role == role) return Stage(row);
    return {};
  }

 private:
  std::span<const StageInfo> rows_;
};

constexpr Stages Stage::siblings() const { return Stages(std::span(row_ - row_->index, row_->count)); }
constexpr Stage Stage::sibling(Role role) const { return siblings().of(role); }

constexpr bool is(Stage stage, Role role) { return stage.row().role == role; }
constexpr Payload payload_of(Stage stage) { return is(stage, Role::choice) ? Payload::indices : Payload::values; }

// True for the stages of the model's head, of which a pass has only the rows that somebody wants.
constexpr bool is_of_head(Stage stage) { return stage.row().scope == Scope::after_layers; }

// True for the stages that the router writes: what chooses the experts, and the choice.
constexpr bool is_of_router(Stage stage) {
  return is(stage, Role::router_scores) || is(stage, Role::router_probs) || is(stage, Role::choice) ||
         is(stage, Role::choice_weights);
}
// True for the two that say which experts compute, and what weight each has.
constexpr bool is_routing(Stage stage) { return is(stage, Role::choice) || is(stage, Role::choice_weights); }

// True for the stages with a vector of each expert chosen: [T, k, n].
constexpr bool holds_experts(Stage stage) { return is(stage, Role::expert_values) || is(stage, Role::weighed_values); }
// True for the stages that have a slot for each expert chosen: [T, k, ...]. They are compared by expert id.
constexpr bool is_per_expert(Stage stage) { return holds_experts(stage) || is(stage, Role::choice_weights); }

// True when a forward pass writes `a` of a layer before `b` of the same layer.
constexpr bool comes_before(Stage a, Stage b) { return a.index() < b.index(); }

// A stage of one layer; `layer` is -1 for the stages of the whole model. Ordered as the forward pass goes.
struct Site {
  Stage stage;
  int layer = -1;

  // The stage of that role in the same layer.
  constexpr Site sibling(Role role) const { return {stage.sibling(role), layer}; }

  friend constexpr bool operator==(const Site&, const Site&) = default;
};

constexpr bool operator<(const Site& a, const Site& b) {
  constexpr auto rank = [](const Site& s) { return is_of_head(s.stage) ? 1 << 20 : s.layer; };
  return rank(a) != rank(b) ? rank(a) < rank(b) : comes_before(a.stage, b.stage);
}

}  // namespace moe_diag
