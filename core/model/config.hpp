// SPDX-License-Identifier: MIT
#pragma once

#include "core/api/model.hpp"
#include "core/gguf/gguf_file.hpp"
#include "core/gguf/gguf_header.hpp"

namespace moe_diag {

// The configuration in a file's metadata; sizes that only tensors show (vocabulary, tied output) come from the tensor
// table. Throws Error (environment) for another architecture, a missing or impossible value, and every key that would
// change the mathematics in a way that is not computed here.
// Of a file that holds a part of a model (core/model/part.hpp) the vocabulary may be in the metadata.
ModelConfig read_config(const GgufFile& file);

// The metadata that read_config() reads, the vocabulary included. `dense_width` is the width of dense layers, which
// loaders want though there are none.
void add_config(GgufHeader& header, const ModelConfig& config, int dense_width);

}  // namespace moe_diag
