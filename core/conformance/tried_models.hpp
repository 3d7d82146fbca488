// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "core/model/model.hpp"
#include "core/model/program.hpp"

namespace moe_diag {

// A small synthetic model of one layer, whose steps a backend is tried with.
struct TriedModel {
  std::string name;  // "qwen3moe, Q4_K"
  Model model;
  Program program;
  bool is_whole = false;           // every step is tried, and whole passes are
  std::vector<std::size_t> steps;  // of the program, to be tried alone: no two do the same

  const ModelConfig& config() const { return model.config(); }
};

// One of odd sizes for each architecture, in f32, with each of its steps; then one for each type of weights, with the
// steps that read such weights: two of these, whose heads are of other sizes, with every step as well. The first call
// makes them, in one thread.
const std::vector<TriedModel>& tried_models();

// "Q4_K and Q6_K"; empty: the step reads no weights.
std::string types_of(const Step& step);

}  // namespace moe_diag
