// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <span>

#include "core/api/step.hpp"

// Which steps, one behind the other and with nobody looking in between, one launch or few can do together. Each takes
// the steps that are still to be done and says how many of them make up the pattern, none if they do not. Each lists
// the values of the parameters that its kernels compute: any other value is computed step by step.
namespace moe_diag::cuda {

// False for a step that no kernel here computes: one that moves a state on, or attends to a cache whose rows hold more
// than its keys or values.
bool computes(const Step& step, const ModelConfig& config);

// Norms and rotations of q and k, then scores, softmax and mix: the steps of attention between its products.
std::size_t attention_steps(std::span<const Step> steps, const ModelConfig& config);

// softmax of the router's logits, then topk.
std::size_t routing_steps(std::span<const Step> steps);

// Two products of one kind with the same vectors and experts, then swiglu of them; or the two products alone.
std::size_t gated_steps(std::span<const Step> steps);
std::size_t paired_steps(std::span<const Step> steps);

// [weigh, combine,] add [, rms_norm]: what a layer adds to its residual, and the norm behind it.
struct Sum {
  const Step *weigh = nullptr, *add = nullptr, *norm = nullptr;
  std::size_t steps = 0;
};
Sum sum_steps(std::span<const Step> steps, int hidden);

}  // namespace moe_diag::cuda
