// SPDX-License-Identifier: MIT
#pragma once

#include <functional>
#include <initializer_list>
#include <string_view>
#include <utility>
#include <vector>

#include "core/api/model.hpp"
#include "core/api/step.hpp"

namespace moe_diag {

// The forward pass as data: every step of every layer, in order.
using Program = std::vector<Step>;

// Writes a program down, step by step, by the names of stages and the roles of weights.
class ProgramBuilder {
 public:
  // The weight of a role in a layer; -1: of no layer. Null when the model has none: an optional one.
  using WeightOf = std::function<const Weight*(std::string_view role, int layer)>;
  using Names = std::initializer_list<std::string_view>;

  ProgramBuilder(const ModelConfig& config, WeightOf weight_of) : config_(config), weight_of_(std::move(weight_of)) {}

  const ModelConfig& config() const { return config_; }

  // Appends a step; its parameters may be set until the next one comes. A weight that is not of the layer is looked for
  // among those of no layer. A step of an operator that adds biases has those that the model has of its weights. Throws
  // Error(environment) for a stage or a role that the architecture lacks.
  Params& add(int layer, Op op, const Names& in, const Names& roles, const Names& out);
  // The step appended last reads a cache, into which its input goes, from `column` on; -1: a state, which the operator
  // moves on. Throws Error(environment) for a cache that the architecture lacks.
  void read_cache(std::string_view name, int input, int column = 0);
  // An RMSNorm of groups of `width` values, the first of which starts at column `offset`.
  void norm(int layer, std::string_view in, std::string_view role, std::string_view out, int width, int offset = 0);

  Program take() { return std::move(program_); }

 private:
  Stage stage(std::string_view name) const;

  const ModelConfig& config_;
  const WeightOf weight_of_;
  Program program_;
};

}  // namespace moe_diag
