// SPDX-License-Identifier: MIT
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/file/safetensors_file.hpp"
#include "core/kernel/case_index.hpp"
#include "core/model/model.hpp"
#include "core/plugin/host.hpp"

namespace moe_diag {

// The cases that are to be written.
struct CasesRequest {
  std::string span;                   // as find_span() takes it
  std::vector<int> layers;            // ascending
  std::vector<int> rows;              // of each case, ascending, each at least 1
  std::vector<CaseRouting> routings;  // empty: all, where the span reads the choice of experts
  std::string numerics = "f32";
  std::string reads, stored;          // roundings of the engine, as round_as() takes them
  std::vector<int> cached = {0, 32};  // positions before the rows, ascending, where the span reads caches
  unsigned seed = 0;                  // of the tokens
  bool decoded = true;                // the weights' values in f32, beside their bytes
  bool fused = false;                 // gate and up of the experts as one tensor, too
  std::string out;                    // folder
  bool overwrite = false;             // replace the cases that are there
  std::string tool_version;
  std::function<bool()> interrupted = {};  // empty: never
  std::function<void(const std::string& what)> progress = {};
};

// Rows that something has computed already: what it read, and what it made of that.
struct SeenRows {
  std::string name;              // of the case's folder
  std::vector<int> positions;    // consecutive
  std::vector<StoredTensor> in;  // by the names of the stages
  StoredTensor out;
};

// Writes cases of such rows in the place of those of random tokens: the inputs in the types that they have, and what
// was made of them as if a kernel had written it. `request` has one layer; its rows, routings and cached positions are
// not looked at. Returns false, and leaves nothing, where all of them hold; `text` says then what was judged.
bool write_seen_cases(const Model& model, const CaseIndex& source, const CasesRequest& request,
                      const std::vector<SeenRows>& seen, std::string& text);

// Writes the folder, whole or not at all, and says in a few lines what it holds. Throws Error: usage for what cannot be
// written, absent where no backend computes in f64, environment when writing fails.
std::string write_cases(const Model& model, const CaseIndex& source, PluginHost& host, const CasesRequest& request);

}  // namespace moe_diag
