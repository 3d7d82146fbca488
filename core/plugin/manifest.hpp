// SPDX-License-Identifier: MIT
#pragma once

#include <string>
#include <string_view>

#include "core/api/abi.hpp"

namespace moe_diag {

// What a file name announces: moe_diag_<kind>_<name>.so.
struct PluginName {
  PluginKind kind = PluginKind::sink;
  std::string name;
};

std::string_view name_of(PluginKind kind);

// Empty when a plugin with this manifest can be used, else what was found, what was wanted and what to do. The ABI
// number is compared before any field that another version could have moved.
std::string refusal_of(const PluginManifest& manifest, const PluginName& wanted);

// Empty when `path` is a whole shared library for this machine, else what it is. The loader maps what a file's headers
// promise without looking at its size, and a cut-off file kills the process.
std::string library_defect(const std::string& path);

}  // namespace moe_diag
