// SPDX-License-Identifier: MIT
#pragma once

#include <optional>
#include <span>
#include <string_view>

#include "core/api/model.hpp"
#include "core/gguf/gguf_file.hpp"
#include "core/gguf/gguf_header.hpp"
#include "core/gguf/metadata_reader.hpp"

// The metadata that several architectures have.
namespace moe_diag::sizes {

// Every key is one of those that read() reads, one of `known`, or a switch that is off: one of those that no
// architecture here computes, or of `switches`. Throws Error (environment).
void refuse_others(const MetadataReader& metadata, std::span<const std::string_view> known,
                   std::span<const MetadataSwitch> switches);

// Sizes of the residual stream, of attention and of the router; eps and theta; the vocabulary and whether the head is
// tied, as the tensors show them. Throws Error (environment) for a missing or impossible value.
enum class HeadDim {
  stated,      // by the key attention.key_length
  by_default,  // that, or hidden / heads
};
ModelConfig read(const GgufFile& file, const MetadataReader& metadata, HeadDim head_dim);

// The width of the experts: one, or one for each layer. Throws Error (environment) when it is absent and has no
// default.
void read_expert_widths(const GgufFile& file, const MetadataReader& metadata, std::optional<int> when_absent,
                        ModelConfig& config);

void add_expert_widths(GgufHeader& header, std::string_view architecture, const ModelConfig& config);

// The keys that read() reads, and `feed_forward_length`.
void add(GgufHeader& header, std::string_view architecture, const ModelConfig& config, int dense_width);

}  // namespace moe_diag::sizes
