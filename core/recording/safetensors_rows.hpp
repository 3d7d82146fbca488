// SPDX-License-Identifier: MIT
#pragma once

#include <memory>

#include "core/recording/dump_folder.hpp"
#include "core/recording/row_source.hpp"

namespace moe_diag {

// A file for each call, a tensor for each stage. Where `is_cut`, `table` is cut to the calls whose files are whole.
// Both outlive it.
std::unique_ptr<RowSource> open_safetensors_rows(const std::string& folder, const DumpFiles& files, CallTable& table,
                                                 const RowRules& rules, bool is_cut);

}  // namespace moe_diag
