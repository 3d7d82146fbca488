// SPDX-License-Identifier: MIT
#pragma once

#include <functional>
#include <string_view>
#include <utility>
#include <vector>

#include "core/api/model.hpp"
#include "core/api/step.hpp"

namespace moe_diag {

// The forward pass as data: every step of every layer, in order.
using Program = std::vector<Step>;

// Writes a program down, step by step.
class ProgramBuilder {
 public:
  // The weight of a role in a layer; -1: of no layer.
  using WeightOf = std::function<const Weight*(std::string_view role, int layer)>;

  ProgramBuilder(const ModelConfig& config, WeightOf weight_of) : config_(config), weight_of_(std::move(weight_of)) {}

  const ModelConfig& config() const { return config_; }

  // Appends a step with the layer's weights of these roles; its parameters may be set until the next one comes.
  Params& add(int layer, Op op, Few<Stage, 2> in, Few<std::string_view, 3> roles, Few<Stage, 2> out);
  // An RMSNorm of groups of `width` values, the first of which starts at column `offset`.
  void norm(int layer, Stage in, std::string_view role, Stage out, int width, int offset = 0);

  Program take() { return std::move(program_); }

 private:
  Few<const Weight*, 3> weights_of(const Few<std::string_view, 3>& roles, int layer) const;

  const ModelConfig& config_;
  const WeightOf weight_of_;
  Program program_;
};

}  // namespace moe_diag
