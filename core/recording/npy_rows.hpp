// SPDX-License-Identifier: MIT
#pragma once

#include <memory>

#include "core/recording/dump_folder.hpp"
#include "core/recording/row_source.hpp"

namespace moe_diag {

// A mapped .npy file. The rows are those that are there, whatever its header says, when `is_cut`.
struct MappedNpy {
  MappedFile file;
  std::size_t head_bytes = 0;
  ArrayFacts facts;

  // `name`: of its values, when they cannot be read any more. Throws Error.
  static MappedNpy open(const std::string& path, const std::string& name, bool is_cut, bool is_bf16_u2);
};

// One array a stage, the rows of all calls one behind the other. Where `is_cut`, `table` is cut to the calls whose rows
// are all there. Both outlive it.
std::unique_ptr<RowSource> open_npy_rows(const DumpFiles& files, CallTable& table, const RowRules& rules, bool is_cut,
                                         bool is_bf16_u2);

}  // namespace moe_diag
