// SPDX-License-Identifier: MIT
#pragma once

#include <optional>
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

// What the name of a file announces when it ends in `suffix`.
std::optional<PluginName> announced(std::string_view file_name, std::string_view suffix);

// Empty when a plugin with this manifest can be used, else what was found, what was wanted and what to do. The ABI
// number is compared before any field that another version could have moved.
std::string refusal_of(const PluginManifest& manifest, const PluginName& wanted);

// Empty when `path` is a whole shared library for this machine, else what it is. The loader maps what a file's headers
// promise without looking at its size, and a cut-off file kills the process.
std::string library_defect(const std::string& path);

// Empty unless the file holds another build stamp than this program's, found without loading it: a library that was
// built with a sanitizer ends a process that was not, from within the loader.
std::string foreign_stamp(const std::string& path);

}  // namespace moe_diag
