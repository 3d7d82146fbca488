// SPDX-License-Identifier: MIT
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/api/model.hpp"

namespace moe_diag {

// dump.json of the native layout.
struct DumpHead {
  std::string engine, numerics, stored, kv_cache, model;
  bool is_closed = false;    // else the dump was cut, or is still being written
  bool is_bf16_u2 = false;   // arrays of "<u2" are bits of bf16
  std::optional<int> calls;  // as many lines has calls.jsonl

  // Throws Error(usage).
  static DumpHead read(const std::string& path);
};

// The files of a dump that hold rows. One of the two lists is empty.
struct DumpFiles {
  struct Array {
    Site site;
    std::string name, path;  // "layer_07/<stage>.npy", without ".part"
    bool is_part = false;    // still being written when the engine ended
  };
  std::vector<Array> arrays;            // in forward order
  std::map<int, std::string> of_calls;  // path by number of the call: safetensors
  std::string leftover;                 // a file that was still being written; empty: none

  // Throws Error(usage) for a file that belongs to no dump, two of one stage, both forms at once, or none.
  static DumpFiles find(const std::string& folder, const ModelConfig& config);
};

}  // namespace moe_diag
