// SPDX-License-Identifier: MIT
#pragma once

#include <string_view>
#include <vector>

namespace moe_diag {

struct TemplateFile {
  std::string_view folder, name, text;
};

// The files of new_sink/, new_kernel/ and new_backend/: projects of a plugin called my_name.
std::vector<TemplateFile> template_files();

}  // namespace moe_diag
