// SPDX-License-Identifier: MIT
#pragma once

#include <map>
#include <string>
#include <vector>

#include "core/file/safetensors_file.hpp"
#include "core/kernel/case_index.hpp"
#include "core/kernel/span.hpp"

namespace moe_diag {

// The weights of a span as a safetensors file has them: each as bytes in its type in the model, and as values.
struct CaseWeights {
  std::vector<TensorSource> sources;
  std::map<std::string, std::string> metadata;  // NAME.type, NAME.shape
  std::vector<IndexedWeight> listed;
};

// `decoded`: with the values, as NAME.f32. `fused`: gate and up of the experts also as one tensor, [experts, 2 * width,
// cols], gate first. Throws Error(usage) when that is asked of a span that does not hold both, or where they are of
// different shapes. The span's weights outlive it.
CaseWeights weights_of(const Span& span, bool decoded, bool fused);

}  // namespace moe_diag
