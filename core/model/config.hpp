// SPDX-License-Identifier: MIT
#pragma once

#include "core/api/model.hpp"
#include "core/gguf/gguf_file.hpp"

namespace moe_diag {

// The configuration in a file's metadata; sizes that only tensors show (vocabulary, tied output) come from the tensor
// table. Throws Error (environment) for another architecture, a missing or impossible value, and every key that would
// change the mathematics in a way that is not computed here.
ModelConfig read_config(const GgufFile& file);

}  // namespace moe_diag
