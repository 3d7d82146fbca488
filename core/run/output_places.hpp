// SPDX-License-Identifier: MIT
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "core/api/error.hpp"
#include "core/contract/contract.hpp"
#include "core/plugin/host.hpp"

namespace moe_diag {

// A file or folder that a call writes.
struct WrittenPlace {
  std::string at;     // of the key in a contract, "file:line:column"; empty: of the command line
  std::string owner;  // "sink 'dump'", "the verdict of quickstart", "--junit"
  std::filesystem::path path;
};

// What the contract's sinks write below `out`, whatever the outcome, and the verdict where one is written.
std::vector<WrittenPlace> output_places(const Contract& contract, PluginHost& host, const std::string& out,
                                        bool with_verdict);

// Where one output would be written over another; nothing may be written then.
struct OutputClash : Error {
  explicit OutputClash(const std::string& what) : Error(ErrorKind::usage, what) {}
};

// Where `path` leads: absolute, with all links followed, also those to what is not there yet.
std::filesystem::path resolved(const std::filesystem::path& path);

// Throws OutputClash with all pairs of which one would write over the other, or into it.
void check_apart(const std::vector<WrittenPlace>& places);

}  // namespace moe_diag
