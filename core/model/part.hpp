// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/api/model.hpp"
#include "core/gguf/gguf_file.hpp"
#include "core/model/model.hpp"

// A part of a model: a GGUF file with the metadata of the whole and the tensors that one step reads, of these perhaps
// only some experts or some rows of the vocabulary. Sizes in the metadata are those of the part; layers, names and
// types of tensors are those of the model. The key `moe_diag.part.stage`, and for stages of a layer
// `moe_diag.part.layer`, say which step it is.
namespace moe_diag {

// The step of a part; none for a whole model. Throws Error (environment) when there is no such step in so many layers.
std::optional<Site> read_part(const GgufFile& file, const ModelConfig& config);

// Whether the step that writes the site reads the tensor.
bool is_read_by(Site site, const TensorSpec& spec, const ModelConfig& config);

// What a part has of the model. Ids are those of the model, ascending; the n-th is n in the part. Empty: all.
struct PartSpec {
  Site site;
  std::vector<std::int32_t> experts;     // of the step's expert tensors, at least as many as are used for a token
  std::vector<std::int32_t> vocabulary;  // rows of the embedding or of the head
};

// Sizes of the part, as its metadata has them.
ModelConfig config_of(const ModelConfig& whole, const PartSpec& spec);

// Bytes of its tensors.
std::uint64_t part_bytes(const Model& model, const PartSpec& spec);

// Throws Error (environment) when the file cannot be written.
void write_part(const Model& model, const PartSpec& spec, const std::string& path);

}  // namespace moe_diag
