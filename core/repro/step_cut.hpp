// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/repro/seen_step.hpp"

namespace moe_diag {

// How much of a step goes into a case. Experts and rows of the vocabulary are those of the model, ascending, and get
// new numbers, from 0 on; empty: all stay as they are.
struct Cut {
  int first = 0, count = 0;  // positions
  std::vector<std::int32_t> experts, vocabulary;

  friend bool operator==(const Cut&, const Cut&) = default;
};

// The number of an id in a case; -1: it was left out.
int number_of(std::int32_t id, const std::vector<std::int32_t>& kept);

// What is tried, one after the other: the failing position with what it concerns; all positions of the pass with
// theirs; and both with whole tensors. `tokens` are those of the prompt, `elements` of the output have to stay.
std::vector<Cut> cuts_of(const SeenStep& seen, const Step& step, const ModelConfig& config, int position,
                         const std::vector<std::int32_t>& tokens, const std::vector<std::int32_t>& elements);

// The inputs of the cut's positions, with the experts' new numbers.
std::vector<GivenValues> inputs_of(const SeenStep& seen, const Step& step, const Cut& cut);

}  // namespace moe_diag
