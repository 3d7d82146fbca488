// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <vector>

#include "core/api/stage.hpp"
#include "core/contract/dump_map.hpp"

namespace moe_diag {

// A map that comes with the program.
struct KnownMap {
  std::string name, what;  // what it reads, in a line
};
std::vector<KnownMap> known_maps();
// Its text, as a file would have it. Throws Error(usage) for another name.
std::string known_map_text(const std::string& name, Stages stages);

// A known map, or that of a file (is_map_file). Throws Error(usage).
DumpMap dump_map(const std::string& name_or_path, Stages stages);

}  // namespace moe_diag
