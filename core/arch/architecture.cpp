// SPDX-License-Identifier: MIT
#include "core/arch/architecture.hpp"

#include <fmt/format.h>

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
  return layer < 0 ? fmt::format("{}.weight", role) : fmt::format("blk.{}.{}.weight", layer, role);
}

std::vector<std::int64_t> TensorSpec::dims() const {
  if (rank == 1) return {cols};
  if (rank == 2) return {cols, rows};
  return {cols, rows, experts};
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
