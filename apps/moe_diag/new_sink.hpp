// SPDX-License-Identifier: MIT
#pragma once

#include <string_view>
#include <vector>

namespace moe_diag {

struct TemplateFile {
  std::string_view name, text;
};

// The files of new_sink/, a project of a sink called my_name.
std::vector<TemplateFile> new_sink_files();

}  // namespace moe_diag
