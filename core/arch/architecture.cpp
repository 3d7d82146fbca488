// SPDX-License-Identifier: MIT
#include "core/arch/architecture.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/gguf/metadata_reader.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

std::string supported() {
  std::string names;
  for (const Architecture* a : architectures()) names += fmt::format("{}'{}'", names.empty() ? "" : ", ", a->name);
  return names;
}

}  // namespace

std::string TensorSpec::name() const {
  const std::string_view suffix = is_bare || role.find('.') != std::string_view::npos ? "" : ".weight";
  return layer < 0 ? fmt::format("{}{}", role, suffix) : fmt::format("blk.{}.{}{}", layer, role, suffix);
}

std::vector<std::int64_t> TensorSpec::dims() const {
  if (rank == 1) return {cols};
  if (rank == 2) return {cols, rows};
  return {cols, rows, experts};
}

Stages all_stages() {
  static const std::vector<StageInfo> rows = [] {
    std::vector<StageInfo> all;
    for (const Architecture* a : architectures()) {
      auto before = all.begin();  // where the next stage goes that is not known
      for (const Stage stage : a->stages) {
        const auto is_same = [&](const StageInfo& row) { return row.name == name_of(stage); };
        const auto known = std::find_if(all.begin(), all.end(), is_same);
        if (known == all.end()) {
          before = all.insert(before, info(stage)) + 1;
        } else {
          known->sums_to_one |= info(stage).sums_to_one;
          before = known + 1;
        }
      }
    }
    number(all);
    return all;
  }();
  return Stages(rows);
}

const Architecture& architecture_of(const GgufFile& file) {
  const auto found = file.text("general.architecture");
  if (!found) refuse_file(file, "metadata key 'general.architecture' is missing, expected {}", supported());
  for (const Architecture* a : architectures()) {
    if (*found == a->name) return *a;
    if (*found == a->dense)
      refuse_file(file, "the architecture is '{}', a dense model without experts; supported: {}", *found, supported());
  }
  refuse_file(file, "the architecture is {}; supported: {}", quoted_bytes(*found), supported());
}

}  // namespace moe_diag
