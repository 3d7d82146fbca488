// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "core/api/stage.hpp"

namespace moe_diag {

// Digests of what lanes computed, one a row: what `moe-diag digest` writes, and a later run is compared with.
struct Digests {
  struct Lane {
    std::string backend, numerics, device, instruction_set;
  };
  // Prompt and lane by name.
  struct Key {
    std::string prompt, lane;
    Site site;
    int position = 0;

    friend bool operator<(const Key& a, const Key& b) {
      return std::tie(a.prompt, a.lane, a.site, a.position) < std::tie(b.prompt, b.lane, b.site, b.position);
    }
  };

  std::string tool_version, model_source, model_digest;
  std::map<std::string, std::vector<std::int32_t>> prompts;  // id: tokens, those generated included
  std::map<std::string, Lane> lanes;
  std::map<Key, std::uint64_t> rows;  // xxh3 of the row's bytes
};

std::string digests_json(const Digests& digests);

// Reads such a file, of at most 256 MiB, and trusts nothing in it. Throws Error: absent when there is no such file,
// environment when it is not one.
Digests read_digests(const std::string& path, Stages stages);

}  // namespace moe_diag
