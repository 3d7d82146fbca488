// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "core/file/safetensors_file.hpp"
#include "core/model/model.hpp"
#include "core/plugin/host.hpp"

namespace moe_diag {

// Tokens of a vocabulary, by chance: the same seed gives the same on every machine.
std::vector<std::int32_t> random_tokens(int count, int vocabulary, unsigned seed);

// The values that the model makes of a prompt at these sites, all of its positions, computed in f64 by the first
// backend that can. Throws Error: absent when no backend computes in f64, environment when it fails.
std::map<Site, StoredTensor> real_values(const Model& model, PluginHost& host, const std::vector<std::int32_t>& tokens,
                                         const std::vector<Site>& sites);

}  // namespace moe_diag
