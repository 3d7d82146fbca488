// SPDX-License-Identifier: MIT
#include "core/explain/model_blocks.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace moe_diag {
namespace {

constexpr std::size_t most_named = 4;  // tensors and experts

}  // namespace

std::vector<UnsoundBlocks> nonfinite_blocks(const std::vector<const Weight*>& weights) {
  std::vector<UnsoundBlocks> blocks = scan_weights(weights);
  blocks.erase(std::remove_if(blocks.begin(), blocks.end(), [](const UnsoundBlocks& b) { return b.nan + b.inf == 0; }),
               blocks.end());
  return blocks;
}

std::string text_of_blocks(const std::vector<UnsoundBlocks>& blocks) {
  std::string text;
  for (std::size_t i = 0; i < blocks.size() && i < most_named; ++i) {
    const UnsoundBlocks& b = blocks[i];
    text += fmt::format("; in the model, {} ({}){}: {}", b.tensor, name_of(b.type),
                        b.expert < 0 ? "" : fmt::format(", expert {}", b.expert), text_of(b));
  }
  if (blocks.size() > most_named) text += fmt::format("; and {} more experts of it", blocks.size() - most_named);
  return text;
}

}  // namespace moe_diag
