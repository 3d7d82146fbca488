// SPDX-License-Identifier: MIT
#pragma once

#include <optional>
#include <string>

#include "core/gguf/file_state.hpp"

namespace moe_diag {

// Whether a change from now on gives another state: one right after the last may bear the same time.
bool is_settled(const FileState& state);

// Digests of model files, remembered from run to run: one small file for each model, by its absolute path, below
// $XDG_CACHE_HOME/moe-diag, or $HOME/.cache/moe-diag. A digest that cannot be kept or read back is computed again;
// nothing here throws.
class DigestMemory {
 public:
  DigestMemory();  // finds the folder; none when neither variable has an absolute path

  // The digest of the file in that state. `sampled` is what is seen of its content without reading it whole.
  std::optional<std::string> recall(const std::string& path, const FileState& state, const std::string& sampled) const;
  // Whole or not at all.
  void remember(const std::string& path, const FileState& state, const std::string& sampled,
                const std::string& digest) const;

 private:
  std::string place_of(const std::string& path) const;  // empty: nowhere

  std::string folder_;
};

}  // namespace moe_diag
