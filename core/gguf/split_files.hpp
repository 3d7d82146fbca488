// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <vector>

#include "core/gguf/gguf_file.hpp"
#include "core/gguf/mapped_file.hpp"

namespace moe_diag {

// The files of all parts of a split model, in order, by the name of one: "m-00002-of-00003.gguf", as llama-gguf-split
// writes them. Empty: the name is not that of a part.
std::vector<std::string> split_parts(const std::string& path);

// A model's file, or all parts of a split one: mapped in order, and read as one.
struct ModelFiles {
  std::vector<MappedFile> mapped;
  GgufFile file;
};

// `path` may be any part. Throws Error: absent when it or another part is not there, environment when a file cannot be
// read, or parts do not belong together.
ModelFiles open_model_files(const std::string& path);

}  // namespace moe_diag
