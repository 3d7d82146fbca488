// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <vector>

#include "core/api/model.hpp"
#include "core/model/program.hpp"
#include "core/recording/recording.hpp"

namespace moe_diag {

// A type of an engine's KV cache, and how far recorded attention is off when it is computed from keys and values that
// were rounded to it.
struct FittedCache {
  std::string kv_cache;  // a row of all_cache_types(); empty: kept as they are
  double error = 0;      // rel_l2, rms over the outputs looked at
};

struct CacheFit {
  std::vector<FittedCache> tried;  // keys and values as they are first; empty: no attention is recorded with its inputs

  // The type that fits clearly better than keys and values as they are; none: these do.
  const FittedCache* best() const;
};

// Tries the types at the first positions of the first layer that has recorded attention with its keys and values.
CacheFit fit_kv_cache(const Recording& recording, const ModelConfig& config, const Program& program);

// "a KV cache in f16 fits: attention differs by 1.1e-07, by 3e-04 with keys and values as they are"; empty: none does.
std::string text_of(const CacheFit& fit);

}  // namespace moe_diag
